//go:build invariants || race

package invariant

// Enabled tells whether invariants are checked.
const Enabled = true
