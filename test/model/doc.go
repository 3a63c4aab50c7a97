// Package model runs the controllers of workloads under random histories: edits, deletions of every kind, pods that die, nodes
// that fall silent, come back or are destroyed, writes that are refused or whose answer is lost, and controllers that crash
// in the middle of a pass. What holds at every moment is checked at every revision of the store, and
// what has to be there in the end when everything is quiet.
//
// A history is made from its seed. Every other one runs its controllers one pass at a time, so that it is the same in
// each run; the others run them side by side.
//
//	go test ./test/model -model.histories=500            more of them
//	go test ./test/model -model.seed=17 -model.histories=1   one again
//
// The package owns no code of the program: it is a test.
package model
