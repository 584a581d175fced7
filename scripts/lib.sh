# What the scripts share: their own Python environment, a Vulkan driver, and what runs code for other processors. To be
# sourced by bash.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

say() { printf '%s\n' "$*" >&2; }

# ensure_venv EXTRAS: an environment in .venv with this project, editable, and its comma-separated extras.
# Does nothing where it already has them for the same pyproject.toml, constraints and Python.
ensure_venv() {
  local python="${PYTHON:-python3}" stamp="$VENV/.optgen-stamp" log="$VENV/pip.log"
  local constraints="$ROOT/requirements/constraints.txt" extras="$1" hash known="" had="" start=$SECONDS
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "optgen needs Python 3.11 or newer: set PYTHON to one"
    return 1
  }
  if ! "$VENV/bin/python" -c '' 2>/dev/null; then
    say "Making a Python environment in .venv"
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || { say "python3 -m venv failed (on Debian: apt-get install python3-venv)"; return 1; }
  fi
  # The folder too: an editable install, copied elsewhere with its checkout, would still run the old one's code.
  hash="$({ cat "$ROOT/pyproject.toml" "$constraints"; "$VENV/bin/python" -V; echo "$ROOT"; } | cksum)"
  [ -f "$stamp" ] && { read -r known; read -r had; } <"$stamp"
  if [ "$known" = "$hash" ]; then
    case ",$had," in *",dev,"*) return 0 ;; esac # dev has all that scripts ask for
    if [ -z "$(comm -23 <(tr , '\n' <<<"$extras" | sort -u) <(tr , '\n' <<<"$had" | sort -u))" ]; then
      return 0
    fi
    extras="$(tr , '\n' <<<"$extras,$had" | sort -u | paste -sd , -)"
  fi
  say "Installing optgen[$extras] into .venv (a few minutes where nothing is cached)"
  if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    -c "$constraints" -e "$ROOT[$extras]" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    say "pip failed; all that it said is in $log"
    return 1
  fi
  printf '%s\n%s\n' "$hash" "$extras" >"$stamp"
  say "Installed in $((SECONDS - start)) s"
}

# has_vulkan: whether a Vulkan driver is registered where the loader looks.
has_vulkan() {
  local folder file
  [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
  for folder in /usr/share /usr/local/share /etc "${XDG_DATA_HOME:-$HOME/.local/share}"; do
    for file in "$folder"/vulkan/icd.d/*.json; do
      [ -e "$file" ] && return 0
    done
  done
  return 1
}

# ensure_vulkan: Mesa's software driver, where there is no Vulkan driver and apt-get may install one. Never fails.
ensure_vulkan() {
  has_vulkan && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Installing a software Vulkan driver (mesa-vulkan-drivers)"
    local install=(env DEBIAN_FRONTEND=noninteractive timeout 240
      apt-get install -qq -y --no-install-recommends mesa-vulkan-drivers)
    "${install[@]}" >/dev/null 2>&1 || { timeout 120 apt-get update -qq && "${install[@]}"; } >/dev/null 2>&1 || true
  fi
  has_vulkan || say "There is no Vulkan driver here (on Debian: apt-get install mesa-vulkan-drivers): going on without"
}

# missing_edge: the Debian packages that are not here of those by which the tests compile for devices, and run what they
# have compiled: emulators, cross compilers, a browser.
missing_edge() {
  local each
  for each in qemu-aarch64-static:qemu-user-static qemu-system-arm:qemu-system-arm gcc:gcc \
    aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu arm-linux-gnueabihf-gcc:gcc-arm-linux-gnueabihf \
    riscv64-linux-gnu-gcc:gcc-riscv64-linux-gnu arm-none-eabi-gcc:gcc-arm-none-eabi chromium:chromium node:nodejs; do
    command -v "${each%%:*}" >/dev/null || echo "${each#*:}"
  done
  for each in /usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross \
    /usr/arm-linux-gnueabihf/include/stdio.h:libc6-dev-armhf-cross \
    /usr/riscv64-linux-gnu/include/stdio.h:libc6-dev-riscv64-cross \
    /usr/lib/arm-none-eabi/lib/libc.a:libnewlib-arm-none-eabi; do
    [ -e "${each%%:*}" ] || echo "${each#*:}"
  done
  # IREE's aarch64 program is linked dynamically.
  if [ "$(uname -m)" != aarch64 ] && [ ! -e /lib/ld-linux-aarch64.so.1 ]; then
    printf '%s\n' libc6:arm64 libstdc++6:arm64 libgcc-s1:arm64
  fi
}

# ensure_edge: those packages, where apt-get may install them. Never fails: tests whose tool is missing say so and skip.
ensure_edge() {
  local missing each
  mapfile -t missing < <(missing_edge)
  [ ${#missing[@]} = 0 ] && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Installing ${missing[*]}"
    case "${missing[*]}" in *:arm64*) dpkg --add-architecture arm64 || true ;; esac
    local install=(env DEBIAN_FRONTEND=noninteractive timeout 420
      apt-get -o DPkg::Lock::Timeout=120 install -qq -y --no-install-recommends)
    timeout 120 apt-get update -qq >/dev/null 2>&1 || true
    if ! "${install[@]}" "${missing[@]}" >/dev/null 2>&1; then
      for each in "${missing[@]}"; do # one that is unknown here must not keep the others out
        "${install[@]}" "$each" >/dev/null 2>&1 || true
      done
    fi
    mapfile -t missing < <(missing_edge)
  fi
  [ ${#missing[@]} = 0 ] || say "Not here, so the tests that need them skip (on Debian: apt-get install): ${missing[*]}"
}
