// The memory contract of arch/memory.py in RTL, and two tops around it: gossamer_cosim, whose register port is driven
// from outside, and gossamer_bench, which checks itself.
//
// Files, as plus arguments: +program, +memory (read at time 0), +events (written), +result (written at `dump`),
// +expected (gossamer_bench only). Memories are hexadecimal, one beat a line.

// One read port. A burst accepted in cycle a has its first beat in
//   max(a + READ_LATENCY, last beat of the burst before + BEAT_INTERVAL + BURST_GAP).
module gossamer_read_port #(
  parameter BYTES = 8,
  parameter READ_LATENCY = 1,
  parameter BEAT_INTERVAL = 1,
  parameter BURST_GAP = 0
) (
  input wire clk,
  input wire running,
  input wire [63:0] t,
  input wire [39:0] araddr,
  input wire [7:0] arlen,
  input wire arvalid,
  output wire rvalid,
  output wire rlast,
  output wire [39:0] beat
);
  localparam DEPTH = 128;
  reg [39:0] address [0:DEPTH - 1];
  reg [7:0] length [0:DEPTH - 1];
  reg [63:0] accepted [0:DEPTH - 1];
  reg [6:0] head, tail;
  reg [7:0] sent;
  reg [63:0] last;
  reg any;
  wire [63:0] first_due = accepted[head] + READ_LATENCY;
  wire [63:0] next_due = last + BEAT_INTERVAL + BURST_GAP;
  wire [63:0] due = sent != 0 ? last + BEAT_INTERVAL : any && next_due > first_due ? next_due : first_due;

  assign rvalid = running && head != tail && t >= due;
  assign rlast = sent == length[head];
  assign beat = address[head] / BYTES + {32'b0, sent};

  always @(posedge clk)
    if (!running) begin
      head <= 0;
      tail <= 0;
      sent <= 0;
      any <= 0;
    end else begin
      if (arvalid) begin
        address[tail] <= araddr;
        length[tail] <= arlen;
        accepted[tail] <= t;
        tail <= tail + 1;
      end
      if (rvalid) begin
        any <= 1;
        last <= t;
        sent <= rlast ? 0 : sent + 1;
        if (rlast) head <= head + 1;
      end
    end
endmodule

// The event log: in every cycle with an event, a line with the cycle, a bit for each unit and kind, and `waited`.
module gossamer_event_log (
  input wire clk,
  input wire rst,
  input wire running,
  input wire dump,
  input wire [63:0] t,
  input wire [4:0] e_dispatch,
  input wire [4:0] e_start,
  input wire [4:0] e_first,
  input wire [4:0] e_last,
  input wire [4:0] e_free,
  input wire [4:0] e_end,
  input wire [55:0] e_waited
);
  integer log;
  reg [8 * 1024 - 1:0] name;
  initial begin
    log = 0;
    if ($value$plusargs("events=%s", name)) log = $fopen(name, "w");
  end
  always @(posedge clk) begin
    if (running && !rst && log != 0 && (|{e_dispatch, e_start, e_first, e_last, e_free, e_end}))
      $fwrite(log, "%0d %0d %0d %0d %0d %0d %0d %0d\n",
              t, e_dispatch, e_start, e_first, e_last, e_free, e_end, e_waited);
    if (dump && log != 0) $fflush(log);
  end
endmodule

// The accelerator with its three memory ports and the event log.
module gossamer_cosim #(
  parameter DATA_BYTES = 8,
  parameter FETCH_BYTES = 8,
  parameter READ_LATENCY = 1,
  parameter BEAT_INTERVAL = 1,
  parameter BURST_GAP = 0,
  parameter WRITE_LATENCY = 1,
  parameter DRAM_BEATS = 1024,
  parameter PROGRAM_BEATS = 1024
) (
  input wire clk,
  input wire rst,
  input wire dump,
  output wire irq,
  output wire running,
  input wire [9:0] host_awaddr,
  input wire [2:0] host_awprot,
  input wire host_awvalid,
  output wire host_awready,
  input wire [31:0] host_wdata,
  input wire [3:0] host_wstrb,
  input wire host_wvalid,
  output wire host_wready,
  output wire [1:0] host_bresp,
  output wire host_bvalid,
  input wire host_bready,
  input wire [9:0] host_araddr,
  input wire [2:0] host_arprot,
  input wire host_arvalid,
  output wire host_arready,
  output wire [31:0] host_rdata,
  output wire [1:0] host_rresp,
  output wire host_rvalid,
  input wire host_rready
);
  reg [8 * DATA_BYTES - 1:0] dram [0:DRAM_BEATS - 1];
  reg [8 * FETCH_BYTES - 1:0] code [0:PROGRAM_BEATS - 1];
  reg [63:0] t;
  always @(posedge clk) t <= running ? t + 1 : 0;

  wire [39:0] f_araddr, r_araddr, w_awaddr, f_beat, r_beat;
  wire [7:0] f_arlen, r_arlen, w_awlen;
  wire f_arvalid, r_arvalid, f_rvalid, r_rvalid, f_rlast, r_rlast;
  gossamer_read_port #(
    .BYTES(FETCH_BYTES), .READ_LATENCY(READ_LATENCY), .BEAT_INTERVAL(BEAT_INTERVAL), .BURST_GAP(BURST_GAP)
  ) fetch_port (
    .clk, .running, .t, .araddr(f_araddr), .arlen(f_arlen), .arvalid(f_arvalid),
    .rvalid(f_rvalid), .rlast(f_rlast), .beat(f_beat)
  );
  gossamer_read_port #(
    .BYTES(DATA_BYTES), .READ_LATENCY(READ_LATENCY), .BEAT_INTERVAL(BEAT_INTERVAL), .BURST_GAP(BURST_GAP)
  ) data_port (
    .clk, .running, .t, .araddr(r_araddr), .arlen(r_arlen), .arvalid(r_arvalid),
    .rvalid(r_rvalid), .rlast(r_rlast), .beat(r_beat)
  );

  // The write port: beats of a burst BEAT_INTERVAL apart, responses WRITE_LATENCY behind the last of each.
  wire w_awvalid, w_wvalid, w_wlast;
  wire [8 * DATA_BYTES - 1:0] w_wdata;
  reg [39:0] w_address [0:127];
  reg [63:0] answer [0:127];
  reg [6:0] w_head, w_tail, b_head, b_tail;
  reg [7:0] w_sent;
  reg [63:0] w_last;
  reg w_any;
  wire [63:0] w_due = w_last + BEAT_INTERVAL + (w_sent == 0 ? BURST_GAP : 0);
  wire w_wready = running && w_head != w_tail && (!w_any || t >= w_due);
  wire w_bvalid = running && b_head != b_tail && t >= answer[b_head] + WRITE_LATENCY;
  always @(posedge clk)
    if (!running) begin
      w_head <= 0;
      w_tail <= 0;
      b_head <= 0;
      b_tail <= 0;
      w_sent <= 0;
      w_any <= 0;
    end else begin
      if (w_awvalid) begin
        w_address[w_tail] <= w_awaddr;
        w_tail <= w_tail + 1;
      end
      if (w_wvalid && w_wready) begin
        dram[w_address[w_head] / DATA_BYTES + {32'b0, w_sent}] <= w_wdata;
        w_any <= 1;
        w_last <= t;
        w_sent <= w_wlast ? 0 : w_sent + 1;
        if (w_wlast) begin
          w_head <= w_head + 1;
          answer[b_tail] <= t;
          b_tail <= b_tail + 1;
        end
      end
      if (w_bvalid) b_head <= b_head + 1;
    end

  wire [4:0] e_dispatch, e_start, e_first, e_last, e_free, e_end;
  wire [55:0] e_waited;
  gossamer machine (
    .clk, .rst, .irq, .running,
    .host_awaddr, .host_awvalid, .host_awready, .host_wdata, .host_wstrb, .host_wvalid, .host_wready,
    .host_bresp, .host_bvalid, .host_bready, .host_araddr, .host_arvalid, .host_arready,
    .host_rdata, .host_rresp, .host_rvalid, .host_rready,
    .fetch_araddr(f_araddr), .fetch_arlen(f_arlen), .fetch_arsize(), .fetch_arburst(), .fetch_arvalid(f_arvalid),
    .fetch_arready(1'b1), .fetch_rdata(code[f_beat]), .fetch_rresp(2'b00), .fetch_rlast(f_rlast),
    .fetch_rvalid(f_rvalid), .fetch_rready(),
    .read_araddr(r_araddr), .read_arlen(r_arlen), .read_arsize(), .read_arburst(), .read_arvalid(r_arvalid),
    .read_arready(1'b1), .read_rdata(dram[r_beat]), .read_rresp(2'b00), .read_rlast(r_rlast),
    .read_rvalid(r_rvalid), .read_rready(),
    .write_awaddr(w_awaddr), .write_awlen(w_awlen), .write_awsize(), .write_awburst(), .write_awvalid(w_awvalid),
    .write_awready(1'b1), .write_wdata(w_wdata), .write_wstrb(), .write_wlast(w_wlast), .write_wvalid(w_wvalid),
    .write_wready(w_wready), .write_bresp(2'b00), .write_bvalid(w_bvalid), .write_bready(),
    .events_dispatch(e_dispatch), .events_start(e_start), .events_first(e_first), .events_last(e_last),
    .events_free(e_free), .events_end(e_end), .events_waited(e_waited)
  );

  gossamer_event_log events (
    .clk, .rst, .running, .dump, .t, .e_dispatch, .e_start, .e_first, .e_last, .e_free, .e_end, .e_waited
  );

  reg [8 * 1024 - 1:0] name;
  initial begin
    if ($value$plusargs("program=%s", name)) $readmemh(name, code);
    if ($value$plusargs("memory=%s", name)) $readmemh(name, dram);
  end
  always @(posedge clk) if (dump && $value$plusargs("result=%s", name)) $writememh(name, dram);
endmodule
