"""A small library of standard cells as liberty text: round numbers, so that results can be worked out by hand."""

__all__ = ["library"]

_GATES = {
    "INV": (1, "!A"),
    "BUF": (2, "A"),
    "NAND": (2, "!(A * B)"),
    "NOR": (2, "!(A + B)"),
    "AND": (3, "A * B"),
    "OR": (3, "A + B"),
    "XOR": (4, "A ^ B"),
}
"""Area and function."""

_FLOP = 8


def library(*, timed: bool = True, unit: str = "1ps", buffers: bool = True) -> str:
    """Inputs load with 1, a clock with 0. A gate takes 10 + load, a flip-flop 20 + load after the clock and needs its
    data 5 before it; transitions are half the load. Times in `unit`.
    """
    gates = "".join(_gate(n, *g, timed) for n, g in _GATES.items() if buffers or n != "BUF")
    return f"""/* for tests */
library (small) {{
  time_unit : "{unit}"; delay_model : table_lookup; capacitive_load_unit (1, ff);
  lu_table_template (t) {{ variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;
    index_1 ("0, 100"); index_2 ("0, 1000"); }}
  lu_table_template (s) {{ variable_1 : related_pin_transition; variable_2 : constrained_pin_transition;
    index_1 ("0, 100"); index_2 ("0, 100"); }}
  {gates}
  cell (FLOP) {{ area : {_FLOP}; ff (IQ, IQN) {{ clocked_on : "C"; next_state : "D"; }}
    pin (C) {{ direction : input; clock : true; capacitance : 0; }}
    pin (D) {{ direction : input; capacitance : 1; {_setup() if timed else ""} }}
    pin (Q) {{ direction : output; function : "IQ"; {_timing("C", 20, "rising_edge") if timed else ""} }} }}
}}
"""


def _gate(name: str, area: int, function: str, timed: bool) -> str:
    pins = [p for p in "AB" if p in function]
    inputs = " ".join(f"pin ({p}) {{ direction : input; capacitance : 1; }}" for p in pins)
    sense = "positive_unate" if name in ("BUF", "AND", "OR") else "negative_unate"
    sense = "non_unate" if name == "XOR" else sense
    arcs = " ".join(_timing(p, 10, "combinational", sense) for p in pins) if timed else ""
    return f"""cell ({name}) {{ area : {area}; {inputs}
    pin (Y) {{ direction : output; function : "{function}"; {arcs} }} }}
  """


def _timing(pin: str, delay: int, kind: str, sense: str = "non_unate") -> str:
    late = f'values ("{delay}, {delay + 1000}", "{delay}, {delay + 1000}")'
    slow = 'values ("0, 500", "0, 500")'
    tables = " ".join(f"cell_{edge} (t) {{ {late}; }} {edge}_transition (t) {{ {slow}; }}" for edge in ("rise", "fall"))
    return f'timing () {{ related_pin : "{pin}"; timing_type : {kind}; timing_sense : {sense}; {tables} }}'


def _setup() -> str:
    tables = " ".join(f'{edge}_constraint (s) {{ values ("5, 5", "5, 5"); }}' for edge in ("rise", "fall"))
    return f'timing () {{ related_pin : "C"; timing_type : setup_rising; {tables} }}'
