// Package clustertest gives a Go test a whole Kubernetes cluster of its own: API server, controllers, scheduler and
// simulated nodes, in the process of the test. There is no child process, no port unless one is asked for, no root and no cgo.
// A cluster starts in some milliseconds, and as many as are wanted live side by side.
//
//	func TestMyController(t *testing.T) {
//		c := clustertest.Start(t, clustertest.ManifestFiles("crd.yaml"))
//		go mycontroller.Run(t.Context(), c.Config())
//		...
//	}
//
// What answers is the API server that `coracle up` runs, with the same controllers: clients speak HTTP with it, watches stream, and
// authentication, authorization, admission, validation and garbage collection are those of a cluster. Pods are bound to simulated
// nodes, which report them as running; no container is started. A pod with the annotation
// simulated.coracle.dev/completes-after: 5s ends with success after that time.
//
// Inside of a bubble of [testing/synctest] the cluster runs on the bubble's time. Where everybody waits, time jumps: a test that
// waits a day for a CronJob takes as long as the work that the day brings. [testing/synctest.Wait] returns when
// the cluster has done all that there is to do now.
//
// The package owns the transport that leads from a client to the API server without a socket, and nothing of what a
// cluster does: that is package cluster's.
package clustertest
