// Package scripts drives the real binary through scenarios that a user could have typed
// (testdata/*.txtar, in the language of github.com/rogpeppe/go-internal/testscript).
//
// Every script has a data directory, a port and a kubeconfig of its own and removes its cluster
// at its end. Beside testscript's commands there are: "coracle" and "kubectl"
// (bin/coracle and the kubectl inside it), "eventually" (runs a command again until it
// succeeds and its output matches), "image" (makes the busybox test image and
// imports it), "expand" (puts the environment's ${VALUES} into files), and "left" (fails if
// anything of the cluster is left on the machine).
package scripts
