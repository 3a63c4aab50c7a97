// Package scripts drives the real binary through scenarios that a user could have typed
// (testdata/*.txtar, in the language of github.com/rogpeppe/go-internal/testscript).
//
// Every script has a data directory, a port and a kubeconfig of its own and removes its cluster
// at its end. Beside testscript's commands there are: "coracle" and "kubectl"
// (bin/coracle and the kubectl inside it), "eventually" (runs a command again until it
// succeeds and its output matches), "image" (makes the busybox test image and
// imports it), "registry" (serves an image registry with it), "webhooks" (serves admission webhooks), "extension" (serves an extension API server), "expand" (puts the environment's ${VALUES}
// into files), "instance" (a data directory for one more cluster), "freeport", "listen" and "kill9". What a cluster leaves in the kernel is held with "traces"
// (writes what there is to a file), "settles" (waits until there is no more than that) and "left" (fails
// if there is anything). In the environment CORACLE_BIN is where the programs are, CORACLE_CHURN how many
// pods come and go.
package scripts
