// Package cni makes the pods' network of this program one that other container runtimes can use, as a plugin of the Container Network
// Interface (https://www.cni.dev/docs/spec/, version 1.1.0): ADD, DEL, CHECK, GC, STATUS and VERSION.
//
// A configuration names either the data directory of a running instance, which then gives links and addresses as it does to its own
// pods (asked over its control socket), or ranges of addresses that the plugin gives out itself, under a lock on a file. It owns the
// links that it made and the records of addresses given out; it never gives out an address of an instance's without asking it.
//
// The package is small in what it imports: it runs before the rest of the program is there (see package early).
package cni
