#!/bin/sh
# A minimal Debian base from Debian packages alone, for machines that reach no image registry.
# Takes the packages from where this machine's own apt takes them; none of its configuration stays in the base.
#
#     base.sh OUT.tar SUITE PACKAGE...
set -eu
out=$1
suite=$2
shift 2

sources=$(grep -lsw "$suite" /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources || true)
if [ -z "$sources" ]; then
    echo "no package source of this machine names Debian $suite" >&2
    exit 1
fi

# Without apt (variant essential); no documentation, no settings of this machine, no setuid programs.
# shellcheck disable=SC2016,SC2086
mmdebstrap --variant=essential --include="$(echo "$@" | tr ' ' ',')" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='find "$1"/etc/apt -type f ! -name 00mmdebstrap -delete' \
    --customize-hook='rm -rf "$1"/var/log/apt "$1"/var/log/dpkg.log "$1"/var/log/alternatives.log' \
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/machine-id' \
    --customize-hook='find "$1" -xdev -type f -perm /6000 -exec chmod a-s {} +' \
    "$suite" "$out" $sources
