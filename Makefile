# The list of commands. Each one sets up what it needs inside this folder, under .venv.
PYTHON ?=
TORCH_INDEX_URL ?=
PORT = 8888
BROWSER = yes
NOTEBOOK_DIR = labs
SCALE = tiny
LAB =
NAME =
CLEAR =
CONFIG =
JSON =
MODELS = tiny/mamba tiny/transformer
TEXT = heldout
WINDOW = 256
PROCESSES = 1
NODES =
HEAD =
PART =
MINUTES =
WEIGHTS =
SUBMISSIONS =
ISOLATION = bubblewrap
STYLE = open

# A value as one word of the shell, whatever is in it.
quote = '$(subst ','\'',$(1))'

# A value that is given is taken as it is, on one line: make would call functions that stand in it, such as $(shell).
define line_break


endef
as_given = $(eval override $(1) := $$(subst $$(line_break), ,$$(value $(1))))
GIVEN = PYTHON TORCH_INDEX_URL PORT BROWSER NOTEBOOK_DIR SCALE LAB NAME CLEAR CONFIG JSON MODELS TEXT WINDOW PROCESSES NODES \
	HEAD PART MINUTES WEIGHTS SUBMISSIONS ISOLATION STYLE
$(foreach name,$(GIVEN),$(if $(filter file,$(origin $(name))),,$(call as_given,$(name))))

VENV_PYTHON = .venv/bin/python
# Small tensors on few cores: one thread is many times faster there. What you set yourself is respected.
ONE_THREAD = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

# Jupyter, IPython and matplotlib keep their files in the clone, not in your home folder. The runtime folder is not a
# hidden one, because a browser installed as a snap cannot open the start page from a hidden folder.
JUPYTER_CONFIG_DIR = $(CURDIR)/.venv/jupyter/config
JUPYTER_DATA_DIR = $(CURDIR)/.venv/jupyter/data
JUPYTER_RUNTIME_DIR = $(CURDIR)/build/jupyter
IPYTHONDIR = $(CURDIR)/.venv/ipython
MPLCONFIGDIR = $(CURDIR)/.venv/matplotlib
# What another program (ROS, conda) set for its own Python would bring its packages into the course.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONPLATLIBDIR PYTHONOPTIMIZE PYTHONINSPECT PYTHONUSERBASE
export PYTHON TORCH_INDEX_URL JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR IPYTHONDIR MPLCONFIGDIR

.PHONY: help setup setup-test setup-all-tests setup-bench setup-site style check lab doctor kernels kernels-remove run \
	solutions site fetch cache tables size test rehearse bench tiny curves recurrences update clean evaluate finetune \
	balance reference release grade

help:
	@echo "Commands:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install everything into .venv (the others call it; TORCH_INDEX_URL= chooses another torch build, PYTHON= another Python)
	@sh scripts/setup.sh

setup-test:
	@sh scripts/setup.sh test

setup-all-tests: # apt and pip side by side
	@sh scripts/test-packages.sh & sh scripts/setup.sh test; status=$$?; wait; exit $$status

setup-bench:
	@sh scripts/setup.sh bench

setup-site:
	@sh scripts/setup.sh site

lab: setup ## open the labs in JupyterLab (PORT=8888, BROWSER=no when you work over ssh, LAB=2.4.1 to open that one)
	@$(VENV_PYTHON) scripts/lab.py --port=$(call quote,$(PORT)) --browser=$(call quote,$(BROWSER)) --lab=$(call quote,$(LAB)) -- $(call quote,$(NOTEBOOK_DIR))

run: setup ## execute the solved labs and print a table (SCALE=tiny or full, LAB=2.4.1 for one of them; NODES=2 for two machines)
	@$(if $(filter tiny,$(SCALE)),$(ONE_THREAD)) $(VENV_PYTHON) -m $(if $(NODES)$(HEAD),shared.notebooks.launch --nodes=$(call quote,$(NODES)) --head=$(call quote,$(HEAD)),shared.notebooks run) --scale=$(call quote,$(SCALE)) $(if $(LAB),--lab=$(call quote,$(LAB)))

solutions: setup-site ## render the solved labs to build/html/index.html (STYLE=collapsed folds the answers; LAB=2.4.1, SCALE=full)
	@$(if $(filter tiny,$(SCALE)),$(ONE_THREAD)) $(VENV_PYTHON) -m shared.notebooks render --style=$(call quote,$(STYLE)) --scale=$(call quote,$(SCALE)) $(if $(LAB),--lab=$(call quote,$(LAB)))

site: setup-site ## render the course without its answers to build/site/index.html (LAB=2.4.1, SCALE=full)
	@$(if $(filter tiny,$(SCALE)),$(ONE_THREAD)) $(VENV_PYTHON) -m shared.notebooks site --scale=$(call quote,$(SCALE)) $(if $(LAB),--lab=$(call quote,$(LAB)))

evaluate: setup ## perplexity of MODELS="tiny/mamba tiny/jamba" on a text (TEXT=story, WINDOW=256, PROCESSES=2 share the documents)
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/evaluate.py --text=$(call quote,$(TEXT)) --window=$(call quote,$(WINDOW)) --processes=$(call quote,$(PROCESSES)) -- $(call quote,$(MODELS))

fetch: setup ## download ahead of class what a lab needs at scale full (LAB=2.4.5 SCALE=full, or NAME=mamba-2.8b)
	@$(VENV_PYTHON) scripts/hub.py fetch --name=$(call quote,$(NAME)) --lab=$(call quote,$(LAB)) --scale=$(call quote,$(SCALE))

cache: setup ## show what the course keeps in the Hugging Face caches (CLEAR=alpaca deletes one)
	@$(VENV_PYTHON) scripts/hub.py cache --clear=$(call quote,$(CLEAR))

doctor: setup ## say what this machine can run, what not, and which command changes that (JSON=yes for programs)
	@$(VENV_PYTHON) scripts/doctor.py --json=$(call quote,$(JSON))

size: setup ## parameters, cache and what fits here, of NAME=qwen3.5-35b-a3b or of any model's CONFIG=path/to/config.json
	@$(VENV_PYTHON) scripts/size.py --name=$(call quote,$(NAME)) --config=$(call quote,$(CONFIG))

kernels: setup ## build Mamba's CUDA kernels for this machine's GPU, check them, install them
	@$(VENV_PYTHON) scripts/kernels/build.py build

kernels-remove: setup ## take the kernels away again
	@$(VENV_PYTHON) scripts/kernels/build.py remove

check: setup-test style ## style, types, and the short tests, which start no lab, no process and no training
	@$(ONE_THREAD) $(VENV_PYTHON) -m pytest -q -n 2 -m "not slow"

style:
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

test: setup-all-tests style ## everything that CI runs: style, types, then all tests
	@$(ONE_THREAD) $(VENV_PYTHON) -m pytest -n 2 --no-loadscope-reorder

rehearse: setup ## run solved labs at scale full with small stand-ins of every model, from a hub on this machine (LAB=2.4.5, WEIGHTS=random)
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/rehearse.py --lab=$(call quote,$(LAB)) --weights=$(call quote,$(WEIGHTS))

bench: setup-bench ## time the selective scan beside transformers' reference and mambapy's, and what memory.track costs (about 13 minutes)
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/bench.py

tiny: setup ## rebuild the tiny text, tokenizer and models in data/tiny
	@$(VENV_PYTHON) scripts/tiny/build.py

curves: setup ## train what lab 2.4.2 compares its short runs with: data/reference/curves.json, data/tiny/recall
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/reference/curves.py

recurrences: setup ## train small models with four updates of the state for lab 2.4.2: data/reference/recurrences.json
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/reference/recurrences.py

finetune: setup ## make what lab 2.4.6 starts from: data/tiny/instruct, data/reference/finetune.json
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/reference/finetune.py

balance: setup ## train what lab 2.4.4 compares its short runs with: data/reference/balance.json
	@$(ONE_THREAD) $(VENV_PYTHON) scripts/reference/balance.py

reference: SCALE = full
reference: setup ## measure speed and memory here, at scale full on a GPU: data/reference/<machine>.json (SCALE=tiny, PART=context, MINUTES=9)
	@$(if $(filter tiny,$(SCALE)),$(ONE_THREAD)) $(VENV_PYTHON) scripts/reference/speed.py --scale=$(call quote,$(SCALE)) $(if $(PART),--part=$(call quote,$(PART))) $(if $(MINUTES),--minutes=$(call quote,$(MINUTES)))

tables: setup ## write the computed tables of data/README.md
	@$(VENV_PYTHON) scripts/tables.py

release: setup ## instructors: the course without answers as an archive in build/release/
	@$(VENV_PYTHON) scripts/release.py

grade: setup ## instructors: judge what students handed in, SUBMISSIONS=folder, into build/grade/ (docs/grading.md)
	@$(VENV_PYTHON) scripts/grade.py --isolation=$(call quote,$(ISOLATION)) -- $(call quote,$(SUBMISSIONS))

update: ## get the newest labs, with what you wrote in them; a lab that you changed is also kept beside the new one
	@sh scripts/update.sh
	@$(MAKE) --no-print-directory setup

clean: ## delete build/ (your labs, data/ and .venv stay)
	rm -rf build
