# kvtier. `make help` lists the targets. Variants build side by side: SAN=address|thread, CC=clang.
MAJOR := 0
MINOR := 1
PATCH := 0
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(PREFIX)/bin
SBINDIR = $(PREFIX)/sbin
LIBDIR = $(PREFIX)/lib
INCLUDEDIR = $(PREFIX)/include
MANDIR = $(PREFIX)/share/man
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
CC = gcc
SAN ?=
V ?= 0
Q := $(if $(filter 1,$(V)),,@)
MAKEFLAGS += --no-builtin-rules
# for the targets that build first: all CPUs, unless make was told how many
BUILD = $(MAKE) $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

variant := $(if $(SAN),$(SAN)-)$(notdir $(CC))
B := build/$(variant)
G := build/gen

WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-unused-parameter -Wno-missing-field-initializers
OPT := $(if $(SAN),-O1 -fno-omit-frame-pointer,-O2)
comma := ,
san_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined
# gcc's does not model fences: shm.h's are for another process
san_thread := -fsanitize=thread $(if $(findstring gcc,$(CC)),-Wno-tsan)
san_fuzzer := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
sanflags := $(if $(SAN),$(san_$(SAN)))
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE $(OPT) -g $(WARN) -fPIC -fvisibility=hidden -fstack-protector-strong -fno-strict-aliasing \
	$(if $(SAN),,-D_FORTIFY_SOURCE=2) $(sanflags) -I. -I$(G) -I$(G)/include \
	-DKVT_RELEASE='"$(MAJOR).$(MINOR).$(PATCH)"' -DPREFIX='"$(PREFIX)"' $(CFLAGS)
ALL_LDFLAGS = $(sanflags) -Wl,-z,relro,-z,now -Wl,--as-needed $(LDFLAGS)
LIBS_CLIENT := -lprotobuf-c -lsodium -lzstd -lpthread -lm
LIBS_DAEMON := -lsystemd -luring -lprotobuf-c -lsodium -lzstd -linih -lpthread -lm

gen := $(G)/proto/kvtier.pb-c.c $(G)/include/kvtier.h
src_lib := $(wildcard libclient/*.c libclient/codec/*.c)
src_ctl := $(wildcard libclient/ctl/*.c)
src_llm := $(wildcard libclient/examples/llm/*.c)
src_daemon := $(wildcard daemon/util/*.c daemon/io/*.c daemon/store/*.c daemon/policy/*.c daemon/engine/*.c daemon/serve/*.c)
obj = $(patsubst %.c,$(B)/%.o,$(1))
lib_objs := $(call obj,$(src_lib)) $(B)/gen/kvtier.pb-c.o
codec_objs := $(call obj,$(wildcard libclient/codec/*.c)) $(B)/gen/kvtier.pb-c.o
daemon_objs := $(call obj,$(src_daemon)) $(codec_objs)

so := libkvtier.so.$(MAJOR).$(MINOR).$(PATCH)
bins := $(B)/kvtierd $(B)/kvtierctl $(B)/libkvtier.a $(B)/$(so) $(B)/llm $(B)/embed
tests_unit := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
tests_scen := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/scen/test_*.c tests/fault/test_*.c tests/crash/test_*.c))
tests_lib := $(call obj,$(wildcard tests/lib/*.c))
fuzzers := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
fuzz_objs := $(patsubst %.c,build/fuzzer-clang/%.o,$(src_daemon) $(src_lib) $(filter-out %/main.c,$(src_llm))) build/fuzzer-clang/gen/kvtier.pb-c.o
bench_lib := $(call obj,$(filter-out tests/bench/bench_%,$(wildcard tests/bench/*.c)))
benches := $(patsubst tests/bench/%.c,$(B)/tests/bench/%,$(wildcard tests/bench/bench_*.c))
preloads := $(patsubst tests/fault/%.c,$(B)/tests/fault/%.so,$(wildcard tests/fault/preload_*.c))

.PHONY: all bins tests benches fuzzers deps demo check check-run check-static check-long check-vm bench bench-codec fuzz install uninstall clean help format
.SECONDARY:
.DELETE_ON_ERROR:

all: deps
	+$(Q)$(BUILD) bins
bins: $(bins)
tests: bins $(tests_unit) $(tests_scen) $(preloads)
benches: bins $(benches)
fuzzers: $(fuzzers)

help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST))

## all         build the daemon, library, CLI and example engine
## deps        install what building needs (Debian packages); says what, asks for root only then
deps:
	$(Q)tests/deps.sh

## demo        one engine computes a long prompt, others start from it: real model, real daemon
demo: deps
	+$(Q)$(BUILD) bins
	$(Q)tests/demo.sh $(B)

## check       all tests: gcc, clang, ASan+UBSan, TSan, style, documentation
check: deps
	+$(Q)$(BUILD) check-static
	+$(Q)$(BUILD) tests
	+$(Q)$(BUILD) CC=clang tests
	+$(Q)$(BUILD) SAN=address tests
	+$(Q)$(BUILD) SAN=thread tests
	$(Q)tests/run.sh build/check.log gcc:$(B) address:build/address-$(notdir $(CC)) thread:build/thread-$(notdir $(CC))

check-static: bins
	$(Q)for t in tests/check_*.sh; do $$t || exit 1; done
	$(Q)git ls-files '*.c' '*.h' | xargs clang-format --dry-run -Werror

## check-long  the storms, for minutes, under ASan and TSan; 200 kills of the daemon with NVMe
check-long: deps
	+$(Q)$(BUILD) SAN=address tests
	+$(Q)$(BUILD) SAN=thread tests
	$(Q)for v in address thread; do for t in test_storm test_async; do STORM_SEC=$${STORM_SEC:-300} build/$$v-gcc/tests/fault/$$t || exit 1; done; done
	+$(Q)$(BUILD) tests
	$(Q)KILLS=$${KILLS:-200} $(B)/tests/fault/test_nvme_kill
	$(Q)CRASHES=$${CRASHES:-3000} $(B)/tests/crash/test_crash

## check-vm    the daemon in an emulated machine: raw NVMe namespaces, IOPOLL, media errors (VM=short: one boot)
check-vm: deps
	$(Q)tests/deps.sh --vm
	+$(Q)$(BUILD) bins $(B)/tests/vm/client
	$(Q)tests/vm/check.sh $(or $(VM),full) $(B)

## bench       measure against the machine's limits; writes build/bench.json (BENCH_QUICK=1: short)
bench: deps
	+$(Q)$(BUILD) benches
	$(Q)tests/bench/run.sh $(B)

## bench-codec  what codecs cost on a real model's KV; writes build/bench-codec.json and plots (BENCH_QUICK=1: short)
bench-codec: deps
	+$(Q)$(BUILD) bins
	$(Q)python3 tests/bench/bench_codec.py $(B) "$$(tests/fetch_model.sh)"

## fuzz        every fuzz target for FUZZ_SEC seconds (default 30)
fuzz: deps
	+$(Q)$(BUILD) CC=clang SAN=fuzzer fuzzers
	$(Q)tests/fuzz/run.sh

## format      clang-format everything
format:
	$(Q)git ls-files '*.c' '*.h' | xargs clang-format -i

## install     to $(DESTDIR)$(PREFIX): daemon, CLI, libraries, header, .pc, man pages, completions
install: bins
	install -d $(addprefix $(DESTDIR),$(SBINDIR) $(BINDIR) $(LIBDIR)/pkgconfig $(INCLUDEDIR) $(BASHDIR) $(ZSHDIR))
	install -m 755 $(B)/kvtierd $(DESTDIR)$(SBINDIR)/
	install -m 755 $(B)/kvtierctl $(DESTDIR)$(BINDIR)/
	install -m 755 $(B)/$(so) $(DESTDIR)$(LIBDIR)/
	ln -sf $(so) $(DESTDIR)$(LIBDIR)/libkvtier.so.$(MAJOR)
	ln -sf $(so) $(DESTDIR)$(LIBDIR)/libkvtier.so
	install -m 644 $(B)/libkvtier.a $(DESTDIR)$(LIBDIR)/
	install -m 644 $(G)/include/kvtier.h $(DESTDIR)$(INCLUDEDIR)/
	sed 's|@PREFIX@|$(PREFIX)|;s|@LIBDIR@|$(LIBDIR)|;s|@INCLUDEDIR@|$(INCLUDEDIR)|;s|@VERSION@|$(MAJOR).$(MINOR).$(PATCH)|' \
		libclient/libkvtier.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/libkvtier.pc
	$(Q)for s in 1 3 5 7 8; do install -d $(DESTDIR)$(MANDIR)/man$$s; install -m 644 man/*.$$s $(DESTDIR)$(MANDIR)/man$$s/ || exit 1; done
	$(B)/kvtierctl completion bash > $(DESTDIR)$(BASHDIR)/kvtierctl
	$(B)/kvtierctl completion zsh > $(DESTDIR)$(ZSHDIR)/_kvtierctl

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/kvtierd $(DESTDIR)$(BINDIR)/kvtierctl $(DESTDIR)$(LIBDIR)/libkvtier.so* $(DESTDIR)$(LIBDIR)/libkvtier.a \
		$(DESTDIR)$(INCLUDEDIR)/kvtier.h $(DESTDIR)$(LIBDIR)/pkgconfig/libkvtier.pc $(DESTDIR)$(BASHDIR)/kvtierctl $(DESTDIR)$(ZSHDIR)/_kvtierctl \
		$(foreach p,$(notdir $(wildcard man/*.[13578])),$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(p)))/$(p))

## clean       remove build/
clean:
	rm -rf build

# generated sources
$(G)/proto/kvtier.pb-c.c: proto/kvtier.proto
	@mkdir -p $(@D)
	@echo "  PROTO   $<"
	$(Q)protoc-c --proto_path=proto --c_out=$(@D) $<
$(G)/proto/kvtier.pb-c.h: $(G)/proto/kvtier.pb-c.c ;
$(G)/include/kvtier.h: libclient/include/kvtier.h.in proto/errors.def Makefile
	@mkdir -p $(@D)
	@echo "  GEN     $@"
	$(Q)sed -n 's|^ERROR(\([0-9]*\), \([A-Z_]*\), "\(.*\)")$$|        KVT_E_\2 = \1, /* \3 */|p' proto/errors.def > $@.errors
	$(Q)sed -e 's/@MAJOR@/$(MAJOR)/;s/@MINOR@/$(MINOR)/;s/@PATCH@/$(PATCH)/' -e '/@ERRORS@/{r $@.errors' -e 'd}' $< > $@

# objects
$(B)/gen/kvtier.pb-c.o: $(G)/proto/kvtier.pb-c.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -Wno-error -c $< -o $@
$(B)/%_avx2.o: ISA := -mavx2
$(B)/%_avx512.o: ISA := -mavx512f -mavx512bw -mavx512vl -mavx512dq
# the same bytes from all three: no fused operations
$(B)/libclient/codec/kernels_base.o: ISA := -O3 -ffp-contract=off -fno-math-errno
$(B)/libclient/codec/kernels_avx2.o: ISA := -O3 -ffp-contract=off -fno-math-errno -mavx2 -mf16c -mbmi2
$(B)/libclient/codec/kernels_avx512.o: ISA := -O3 -ffp-contract=off -fno-math-errno -mavx512f -mavx512bw -mavx512vl -mavx512dq -mf16c -mbmi2
$(B)/libclient/ctl/attention.o: ISA := -O3 -fno-math-errno
$(B)/libclient/examples/llm/%.o: ISA := -O3 -fno-math-errno
$(B)/%.o: %.c | $(gen)
	@mkdir -p $(@D)
	@echo "  CC      $@"
	$(Q)$(CC) $(ALL_CFLAGS) $(ISA) -MMD -MP -c $< -o $@

# programs and libraries
link = @mkdir -p $(@D); echo "  LD      $@"; $(if $(Q),,set -x;) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS)
$(B)/kvtierd: $(B)/daemon/main.o $(daemon_objs)
	$(link) -pie $^ -o $@ $(LIBS_DAEMON)
$(B)/libkvtier.a: $(lib_objs)
	@echo "  AR      $@"
	$(Q)rm -f $@ && ar rcs $@ $^
$(B)/$(so): $(lib_objs) libclient/libkvtier.map
	$(link) -shared $(if $(SAN),,-Wl$(comma)-z$(comma)defs) -Wl,-soname,libkvtier.so.$(MAJOR) -Wl,--version-script=libclient/libkvtier.map \
		$(filter %.o,$^) -o $@ $(LIBS_CLIENT)
	$(Q)ln -sf $(so) $(B)/libkvtier.so.$(MAJOR) && ln -sf $(so) $(B)/libkvtier.so
$(B)/kvtierctl: $(call obj,$(src_ctl)) $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_CLIENT) -ljansson -lm
$(B)/llm: $(call obj,$(src_llm)) $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_CLIENT) -lopenblas -ljansson -lm
$(B)/embed: $(B)/libclient/examples/embed.o $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_CLIENT)
$(B)/tests/%: $(B)/tests/%.o $(tests_lib) $(daemon_objs) $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_DAEMON) -ljansson -lcmocka -lhiredis -lm
$(B)/tests/bench/%: $(B)/tests/bench/%.o $(bench_lib) $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_CLIENT) -lhiredis
$(addprefix $(B)/tests/bench/,bench_catalog bench_nvme bench_nvme_trace): $(B)/tests/bench/%: $(B)/tests/bench/%.o $(bench_lib) $(daemon_objs) $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_DAEMON) -lhiredis
$(B)/tests/vm/%: $(B)/tests/vm/%.o $(B)/libkvtier.a
	$(link) -pie $^ -o $@ $(LIBS_CLIENT)
$(B)/tests/fault/preload_%.so: $(B)/tests/fault/preload_%.o
	$(link) -shared $^ -o $@ -ldl -lpthread
# fuzzers share objects that are instrumented once; each takes those that it needs
build/fuzzer-clang/all.a: $(fuzz_objs)
	@echo "  AR      $@"
	$(Q)rm -f $@ && ar rcs $@ $^
build/fuzz/%: build/fuzzer-clang/tests/fuzz/%.o build/fuzzer-clang/all.a
	@mkdir -p $(@D); echo "  LD      $@"
	$(Q)clang -fsanitize=fuzzer,address,undefined $^ -o $@ $(LIBS_DAEMON) -lopenblas -ljansson -lm
-include $(shell find build -name '*.d' 2>/dev/null)
