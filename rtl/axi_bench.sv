// The accelerator with its three AXI4 ports brought to the top, for bus models that are driven from outside, with the
// event log and a record of every handshake.
//
// Files, as plus arguments: +events and +handshakes (written).
module gossamer_axi_bench #(
  parameter DATA_BYTES = 8,
  parameter FETCH_BYTES = 8
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
  input wire host_rready,
  output wire fetch_arid,
  output wire [39:0] fetch_araddr,
  output wire [7:0] fetch_arlen,
  output wire [2:0] fetch_arsize,
  output wire [1:0] fetch_arburst,
  output wire fetch_arvalid,
  input wire fetch_arready,
  input wire fetch_rid,
  input wire [8 * FETCH_BYTES - 1:0] fetch_rdata,
  input wire [1:0] fetch_rresp,
  input wire fetch_rlast,
  input wire fetch_rvalid,
  output wire fetch_rready,
  output wire read_arid,
  output wire [39:0] read_araddr,
  output wire [7:0] read_arlen,
  output wire [2:0] read_arsize,
  output wire [1:0] read_arburst,
  output wire read_arvalid,
  input wire read_arready,
  input wire read_rid,
  input wire [8 * DATA_BYTES - 1:0] read_rdata,
  input wire [1:0] read_rresp,
  input wire read_rlast,
  input wire read_rvalid,
  output wire read_rready,
  output wire write_awid,
  output wire [39:0] write_awaddr,
  output wire [7:0] write_awlen,
  output wire [2:0] write_awsize,
  output wire [1:0] write_awburst,
  output wire write_awvalid,
  input wire write_awready,
  output wire [8 * DATA_BYTES - 1:0] write_wdata,
  output wire [DATA_BYTES - 1:0] write_wstrb,
  output wire write_wlast,
  output wire write_wvalid,
  input wire write_wready,
  input wire write_bid,
  input wire [1:0] write_bresp,
  input wire write_bvalid,
  output wire write_bready
);
  // One master, one order: there is nothing to tell apart.
  assign fetch_arid = 1'b0;
  assign read_arid = 1'b0;
  assign write_awid = 1'b0;

  reg [63:0] t;
  always @(posedge clk) t <= running ? t + 1 : 0;

  wire [4:0] e_dispatch, e_start, e_first, e_last, e_free, e_end;
  wire [55:0] e_waited;
  gossamer machine (
    .clk, .rst, .irq, .running,
    .host_awaddr, .host_awvalid, .host_awready, .host_wdata, .host_wstrb, .host_wvalid, .host_wready,
    .host_bresp, .host_bvalid, .host_bready, .host_araddr, .host_arvalid, .host_arready,
    .host_rdata, .host_rresp, .host_rvalid, .host_rready,
    .fetch_araddr, .fetch_arlen, .fetch_arsize, .fetch_arburst, .fetch_arvalid, .fetch_arready,
    .fetch_rdata, .fetch_rresp, .fetch_rlast, .fetch_rvalid, .fetch_rready,
    .read_araddr, .read_arlen, .read_arsize, .read_arburst, .read_arvalid, .read_arready,
    .read_rdata, .read_rresp, .read_rlast, .read_rvalid, .read_rready,
    .write_awaddr, .write_awlen, .write_awsize, .write_awburst, .write_awvalid, .write_awready,
    .write_wdata, .write_wstrb, .write_wlast, .write_wvalid, .write_wready,
    .write_bresp, .write_bvalid, .write_bready,
    .events_dispatch(e_dispatch), .events_start(e_start), .events_first(e_first), .events_last(e_last),
    .events_free(e_free), .events_end(e_end), .events_waited(e_waited)
  );
  gossamer_event_log events (
    .clk, .rst, .running, .dump, .t, .e_dispatch, .e_start, .e_first, .e_last, .e_free, .e_end, .e_waited
  );

  // A bit for every handshake, in the order of rtl/cosim.py.
  wire [9:0] taken = {
    write_bvalid && write_bready,
    write_wvalid && write_wready && write_wlast,
    write_wvalid && write_wready,
    write_awvalid && write_awready,
    read_rvalid && read_rready && read_rlast,
    read_rvalid && read_rready,
    read_arvalid && read_arready,
    fetch_rvalid && fetch_rready && fetch_rlast,
    fetch_rvalid && fetch_rready,
    fetch_arvalid && fetch_arready
  };
  integer log;
  reg [8 * 1024 - 1:0] name;
  initial begin
    log = 0;
    if ($value$plusargs("handshakes=%s", name)) log = $fopen(name, "w");
  end
  always @(posedge clk) begin
    if (running && !rst && log != 0 && (|taken)) $fwrite(log, "%0d %0d\n", t, taken);
    if (dump && log != 0) $fflush(log);
  end
endmodule
