// A bench that checks itself. What it does to the registers is what a driver does: enable the interrupt, set the
// program, start it, wait, ask for errors and cycles. Then it compares the memory with +expected. FAIL ends in $fatal,
// so that the simulator's exit code is not zero.
module gossamer_bench;
  reg clk = 0;
  always #5 clk = !clk;

  reg rst = 1;
  reg [9:0] address, from;
  reg [31:0] value;
  reg valid = 0, asking = 0;
  wire ready, answered, irq, heard, told;
  wire [31:0] answer;
  wire unused_running;
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
    .host_araddr(from), .host_arprot(3'b0), .host_arvalid(asking), .host_arready(heard),
    .host_rdata(answer), .host_rresp(unused_rresp), .host_rvalid(told), .host_rready(1'b1)
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

  task read(input [9:0] at, output [31:0] what);
    begin
      @(negedge clk);
      from = at;
      asking = 1;
      #1;
      while (!heard) @(negedge clk);
      @(negedge clk);
      asking = 0;
      while (!told) @(negedge clk);
      what = answer;
      @(negedge clk);
    end
  endtask

  reg [8 * `DATA_BYTES - 1:0] expected [0:`DRAM_BEATS - 1];
  reg [8 * 1024 - 1:0] name;
  reg [31:0] status, error, index, low, high;
  reg [63:0] cycles;
  integer wrong;
  longint k, clocks;
  initial begin
    repeat (4) @(negedge clk);
    rst = 0;
    write(`AT_INTERRUPT_ENABLE, 1);
    write(`AT_PROGRAM_LOW, 0);
    write(`AT_PROGRAM_HIGH, 0);
    write(`AT_PROGRAM_LENGTH, `PROGRAM_LENGTH);
    write(`AT_CONTROL, 1);
    clocks = 0;
    while (!irq && clocks < `CLOCK_LIMIT) begin
      @(negedge clk);
      clocks = clocks + 1;
    end
    if (!irq) $fatal(1, "FAIL: no interrupt after %0d clocks", clocks);
    write(`AT_INTERRUPT_STATUS, 1);
    read(`AT_STATUS, status);
    read(`AT_ERROR, error);
    read(`AT_ERROR_INDEX, index);
    if (irq || status != 2) $fatal(1, "FAIL: status %0d, error %0d at instruction %0d", status, error, index);
    read(`AT_CYCLES_LOW, low);
    read(`AT_CYCLES_HIGH, high);
    cycles = {high, low};
    wrong = 0;
    if (!$value$plusargs("expected=%s", name)) $fatal(1, "FAIL: +expected names the memory's image at the end");
    $readmemh(name, expected);
    for (k = 0; k < `DRAM_BEATS; k = k + 1)
      if (cosim.dram[k] !== expected[k]) begin
        if (wrong == 0) $display("beat %0d is %h, not %h", k, cosim.dram[k], expected[k]);
        wrong = wrong + 1;
      end
    if (wrong != 0) $fatal(1, "FAIL: %0d of %0d beats differ", wrong, `DRAM_BEATS);
    if (`CYCLES != 0 && cycles != `CYCLES) $fatal(1, "FAIL: %0d cycles, not %0d", cycles, `CYCLES);
    $display("PASS: %0d beats as expected after %0d cycles", `DRAM_BEATS, cycles);
    $finish;
  end
endmodule
