// Package volume makes the volumes of pods: it owns everything below
// <pods>/<uid>/volumes and <pods>/<uid>/volume-subpaths and all of <pods>/.memory, decides from a snapshot what
// each volume holds (plan.go, payload.go, downward.go: pure), and makes it so
// (apply.go, atomic.go, hostpath.go, claim.go, subpath.go, tokens.go, certificates.go).
//
// Volumes whose content comes from objects (config maps, secrets, downward API, service
// account tokens, certificates) follow their sources for as long as the pod is prepared: Manager.Run
// reads the store's history with one cursor and sleeps until something happens; a consumer
// sees each change as one step, because the files are swapped behind one symbolic link.
//
// It never makes a syscall itself (mounts, safe opening of paths and disk usage are those of
// package linux), never polls, never writes objects (a request for a certificate goes through Config.Certificate), and holds no secret beyond
// the call that writes it, except service account tokens and certificates that are still fresh.
//
// Locks: Manager.mu (the table of pods and of sources) may be taken while podState.mu
// (one pod's volumes) is held, never the other way round; so may memory.mu.
package volume
