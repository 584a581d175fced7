# What the scripts share: their own Python environment, and a Vulkan driver. To be sourced by bash.

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
