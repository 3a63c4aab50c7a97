// Package reconciletest runs loops on a store in memory, for their tests: as
// scenarios that a user could read (Scenarios), under random histories (Random), or
// step by step (New).
//
// Its Cluster stands in for the API server: it applies the rules of the Kinds, knows
// generations, finalizers, grace periods and propagation, and gives names and UIDs
// in order, so that what comes out is the same in each run. Everything
// happens inside a testing/synctest bubble, where minutes pass at once.
package reconciletest
