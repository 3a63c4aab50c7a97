// Package kubelet is the HTTP API of a node: logs, exec, attach, port forwarding, the list of
// pods and the usage figures, at the paths and in the words of upstream's kubelet.
//
// It knows how these streams travel (WebSocket and SPDY, all protocol versions that kubectl
// and client-go speak) and how logs are written on disk; everything else it asks: the node agent which
// container a name stands for, the runtime for processes and streams.
//
// It authenticates and authorizes nobody: the API server hands requests over in-process
// after it did both. It keeps no state but the connections under way, and nothing runs unless
// somebody asked.
package kubelet
