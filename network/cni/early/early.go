// Package early makes a program a CNI plugin when it is started as one.
//
// A container runtime starts the plugin several times for every container, and most of the time that a start of the whole program takes is
// the initialisation of packages that a plugin does not use. Go initialises a package as soon as all that it imports is, those first whose
// import path sorts first (https://go.dev/ref/spec#Program_initialization), and this one imports little: it does its work and ends the
// program before the others' turn. If that order were another, all would work as well and take longer. It is imported by main packages only.
package early

import (
	"os"

	"coracle.dev/coracle/network/cni"
)

func init() {
	// A user who says what the program is to do means that, whatever is in the environment.
	if os.Getenv("CNI_COMMAND") != "" && len(os.Args) == 1 {
		os.Exit(cni.Main())
	}
}
