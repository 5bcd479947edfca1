# Sourced by the scripts beside it. Gives: root, say, install_once.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '%s\n' "$*" >&2; }

# The first Python of version 3.11 or newer; $PYTHON goes before all others.
python_to_use() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
    # run, because a version manager leaves programs on PATH that only say they are not installed
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  say "vecbridge needs Python 3.11 or newer and found none on PATH (looked for python3, python3.11 to" \
    "python3.14 and python). Install one, or name it: PYTHON=/path/to/python $0"
  return 1
}

# install_once VENV KEY COMMAND…: run `VENV/bin/python -m pip install COMMAND…`, unless the last install
# into VENV had the same KEY. Makes VENV where it is absent or broken.
install_once() {
  local venv="$1" key="$2" python
  shift 2
  if [[ -f "$venv/installed" && "$(<"$venv/installed")" == "$key" ]] \
    && "$venv/bin/python" -c '' >/dev/null 2>&1; then
    return
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(python_to_use)"
    say "Making a virtual environment in $venv ($("$python" --version))"
    if ! "$python" -m venv --clear "$venv" >&2; then
      say "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
      return 1
    fi
  fi
  # gone while installing, so that an interrupted install is done again
  rm -f "$venv/installed"
  say "Installing into $venv: $*"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location "$@" >&2
  printf '%s\n' "$key" >"$venv/installed"
}

# The development environment that scripts/check and scripts/test share.
development() {
  install_once "$root/.venv" "$(<"$root/pyproject.toml")" --editable "$root[dev]"
}
