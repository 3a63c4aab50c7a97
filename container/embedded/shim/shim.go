// Package shim holds the program coracle-shim as part of coracle itself. It owns
// the bytes and nothing else; cmd/coracle-shim is their source.
package shim

import (
	"embed"
	"errors"
)

// The folder has a README so that everything compiles before the program is built.
//
//go:embed bin
var files embed.FS

// ErrMissing says that this coracle was compiled without the program.
var ErrMissing = errors.New("this coracle was built without coracle-shim, and cannot run containers: run `make shim` (or container/embedded/shim/build.sh) and build it again")

// Program returns the program, not to be changed.
func Program() ([]byte, error) {
	data, err := files.ReadFile("bin/coracle-shim")
	if err != nil {
		return nil, ErrMissing
	}
	return data, nil
}
