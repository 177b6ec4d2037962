# The thin front of Meson and Ninja. `make help` lists what there is.
BUILD ?= build
MESON = meson setup --warnlevel 2
WERROR ?= false
PORT ?= 8000

.PHONY: all help deps run test asan tsan bench fuzz lint format clean demo-model

all: deps ## build the one binary, build/cornserve
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) -Dwerror=$(WERROR)
	@ninja -C $(BUILD)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

deps: ## install the Debian packages that are missing
	@tools/install-packages

run: all ## serve the checkpoint that ships with the project and ask it something (PORT=8000)
	@tools/try-it $(BUILD)/cornserve $(PORT)

test: WERROR = true
test: all ## everything that needs no GPU and no network
	@meson test -C $(BUILD) --print-errorlogs

asan: deps ## the whole suite under AddressSanitizer and UndefinedBehaviorSanitizer
	@test -f build-asan/build.ninja || meson setup build-asan -Db_sanitize=address,undefined -Db_lundef=false
	@ninja -C build-asan
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 meson test -C build-asan --print-errorlogs --timeout-multiplier 5

tsan: deps ## the threaded parts under ThreadSanitizer
	@test -f build-tsan/build.ninja || meson setup build-tsan -Db_sanitize=thread -Db_lundef=false
	@ninja -C build-tsan
	@TSAN_OPTIONS=suppressions=$(CURDIR)/tests/tsan.supp meson test -C build-tsan --print-errorlogs --timeout-multiplier 10

bench: all ## the figures of docs/SPEED.md, measured on this machine (CHECKPOINT=DIR)
	@tools/bench $(BUILD) $(CHECKPOINT)

lint: all ## layout, layers and headers of the sources
	@tools/lint $(BUILD)

demo-model: all ## make the small trained checkpoint again from its seed (hours) and print its accuracy
	@tools/demo/make all

fuzz: deps ## each fuzz target under libFuzzer for SECONDS=60 (needs clang)
	@test -f build-fuzz/build.ninja || CC=clang meson setup build-fuzz -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false
	@ninja -C build-fuzz
	@tests/fuzz/run build-fuzz $(or $(SECONDS),60)

clean: ## remove the build directories
	rm -rf build build-asan build-tsan build-fuzz
