//go:build !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "coracle-shim: built without cgo; use container/embedded/shim/build.sh")
	os.Exit(1)
}
