// Command busybox-image writes a container image with Debian's static busybox in it to standard output, as
// "docker save" would: for the demo and for tests on machines that reach no registry.
package main

import (
	"fmt"
	"os"

	"coracle.dev/coracle/container/image/build"
)

func main() {
	if err := build.Busybox("/bin/busybox", os.Args[1:]...).Write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "busybox-image:", err)
		os.Exit(1)
	}
}
