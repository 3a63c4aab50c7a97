#!/bin/sh
# Builds the program that containers are children of, to be embedded in coracle.
# Needs gcc, libc and libseccomp for static linking (Debian: gcc libc6-dev libseccomp-dev).
set -eu
cd "$(dirname "$0")/../../.."
out=${1:-container/embedded/shim/bin/coracle-shim}
CGO_ENABLED=1 go build -tags "seccomp osusergo netgo runc_nocriu" -trimpath \
	-ldflags '-s -w -linkmode external -extldflags -static' -o "$out" ./cmd/coracle-shim
