# Shared by scripts/*: finds or installs what a fresh Debian machine lacks. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$HOME/.cargo/bin:$HOME/go/bin:/usr/local/go/bin:$PATH"

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else die "need root for: $* (install sudo or run it by hand)"; fi; }

apt_need() { # apt_need COMMAND PACKAGE ...
  local missing=()
  while [ $# -gt 0 ]; do have "$1" || missing+=("$2"); shift 2; done
  [ ${#missing[@]} = 0 ] && return 0
  have apt-get || die "please install: ${missing[*]}"
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ca-certificates >/dev/null
}

need_rust() {
  apt_need cc gcc curl curl
  # cc alone is not enough to link: Debian's gcc recommends the libc headers, which --no-install-recommends leaves out.
  [ -e /usr/include/stdio.h ] || { as_root apt-get update -qq; as_root apt-get install -y -qq libc6-dev >/dev/null; }
  if ! have cargo; then
    say "installing Rust (rustup)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default --default-toolchain none
    . "$HOME/.cargo/env"
  fi
}

need_fuse() {
  apt_need fusermount3 fuse3
  [ -e /dev/fuse ] || as_root modprobe fuse || die "/dev/fuse is missing: load the fuse module, or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
}

need_helm() { # sets HELM; installs it below target/tools when it is missing
  HELM=$(command -v helm || true)
  [ -n "$HELM" ] && return 0
  HELM="$PWD/target/tools/bin/helm"
  [ -x "$HELM" ] && return 0
  have go || die "helm is missing: install it (https://helm.sh), or Go so that this script can"
  say "installing helm"
  GOBIN="$PWD/target/tools/bin" go install helm.sh/helm/v3/cmd/helm@v3.22.0
}
