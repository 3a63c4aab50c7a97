// Package daemonset keeps one pod of each DaemonSet on every node that is fit for it.
//
// It owns the pods of a daemon set, its ControllerRevisions and its status. It never binds pods:
// each names its node in its affinity, and the scheduler puts it there.
package daemonset
