// Memories of a Gossamer accelerator. Replace them by the macros of your process; nothing else needs to change.

// One write port with an enable for every GRAIN bits, one read port with an output register that holds its value.
module gossamer_ram #(
  parameter WIDTH = 8,
  parameter DEPTH = 2,
  parameter ADDRESS = 1,
  parameter GRAIN = 8
) (
  input wire clk,
  input wire [WIDTH / GRAIN - 1:0] w_en,
  input wire [ADDRESS - 1:0] w_addr,
  input wire [WIDTH - 1:0] w_data,
  input wire r_en,
  input wire [ADDRESS - 1:0] r_addr,
  output reg [WIDTH - 1:0] r_data
);
  reg [WIDTH - 1:0] words [0:DEPTH - 1];
  integer k;

  always @(posedge clk) begin
    for (k = 0; k < WIDTH / GRAIN; k = k + 1)
      if (w_en[k]) words[w_addr][k * GRAIN +: GRAIN] <= w_data[k * GRAIN +: GRAIN];
    if (r_en) r_data <= words[r_addr];
  end
endmodule

// One write port, PORTS read ports without a register.
module gossamer_regfile #(
  parameter WIDTH = 8,
  parameter DEPTH = 2,
  parameter ADDRESS = 1,
  parameter PORTS = 1
) (
  input wire clk,
  input wire w_en,
  input wire [ADDRESS - 1:0] w_addr,
  input wire [WIDTH - 1:0] w_data,
  input wire [PORTS * ADDRESS - 1:0] r_addr,
  output wire [PORTS * WIDTH - 1:0] r_data
);
  reg [WIDTH - 1:0] words [0:DEPTH - 1];

  always @(posedge clk)
    if (w_en) words[w_addr] <= w_data;

  genvar p;
  generate
    for (p = 0; p < PORTS; p = p + 1) begin : port
      assign r_data[p * WIDTH +: WIDTH] = words[r_addr[p * ADDRESS +: ADDRESS]];
    end
  endgenerate
endmodule
