// Package apiserver is the door of the cluster: the Kubernetes API over HTTP, and
// the same chain as plain function calls for the parts of this program.
//
// It routes, authenticates, authorizes, decodes and answers. What it decides with is
// below it: route (paths), wire (forms on the network), authn, authz, admission,
// write (the chain of a change), patch, list, watch, table and discovery. It keeps no
// objects of its own: the store is the only truth. It never calls a controller, and reaches a
// node only through Config.Nodes.
//
// A request runs on the goroutine that net/http gives it, from ServeHTTP down; locks are
// held only inside the packages below, and never while waiting for a store or a network.
package apiserver
