// A bench that checks itself: writes the registers, waits for the interrupt, compares the memory with +expected.
module gossamer_bench;
  reg clk = 0;
  always #5 clk = !clk;

  reg rst = 1;
  reg [9:0] address;
  reg [31:0] value;
  reg valid = 0;
  wire ready, answered, irq;
  wire [31:0] unused_data;
  wire unused_running, unused_arready, unused_rvalid;
  wire [1:0] unused_bresp, unused_rresp;

  gossamer_cosim #(
    .DATA_BYTES(`DATA_BYTES), .FETCH_BYTES(`FETCH_BYTES), .READ_LATENCY(`READ_LATENCY),
    .BEAT_INTERVAL(`BEAT_INTERVAL), .BURST_GAP(`BURST_GAP), .WRITE_LATENCY(`WRITE_LATENCY),
    .DRAM_BEATS(`DRAM_BEATS), .PROGRAM_BEATS(`PROGRAM_BEATS)
  ) cosim (
    .clk, .rst, .dump(1'b0), .irq, .running(unused_running),
    .host_awaddr(address), .host_awprot(3'b0), .host_awvalid(valid), .host_awready(ready),
    .host_wdata(value), .host_wstrb(4'hf), .host_wvalid(valid), .host_wready(),
    .host_bresp(unused_bresp), .host_bvalid(answered), .host_bready(1'b1),
    .host_araddr(10'b0), .host_arprot(3'b0), .host_arvalid(1'b0), .host_arready(unused_arready),
    .host_rdata(unused_data), .host_rresp(unused_rresp), .host_rvalid(unused_rvalid), .host_rready(1'b1)
  );

  task write(input [9:0] at, input [31:0] what);
    begin
      @(negedge clk);
      address = at;
      value = what;
      valid = 1;
      #1;
      while (!ready) @(negedge clk);
      @(negedge clk);
      valid = 0;
      while (!answered) @(negedge clk);
      @(negedge clk);
    end
  endtask

  reg [8 * `DATA_BYTES - 1:0] expected [0:`DRAM_BEATS - 1];
  reg [8 * 1024 - 1:0] name;
  integer k, wrong, clocks;
  initial begin
    repeat (4) @(negedge clk);
    rst = 0;
    write(`AT_INTERRUPT_ENABLE, 1);
    write(`AT_PROGRAM_LOW, 0);
    write(`AT_PROGRAM_HIGH, 0);
    write(`AT_PROGRAM_LENGTH, `PROGRAM_LENGTH);
    write(`AT_CONTROL, 1);
    clocks = 0;
    while (!irq && clocks < 1000000) begin
      @(negedge clk);
      clocks = clocks + 1;
    end
    wrong = 0;
    if ($value$plusargs("expected=%s", name)) $readmemh(name, expected);
    for (k = 0; k < `DRAM_BEATS; k = k + 1) if (cosim.dram[k] !== expected[k]) wrong = wrong + 1;
    if (irq && wrong == 0) $display("PASS: %0d beats as expected after %0d clocks", `DRAM_BEATS, clocks);
    else $display("FAIL: %0d beats differ, interrupt %0d", wrong, irq);
    $finish;
  end
endmodule
