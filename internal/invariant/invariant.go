// Package invariant says whether this build checks what production takes for granted.
//
// It owns one switch: builds with the race detector or with the tag
// "invariants" are loud, all others do not pay for the checks.
package invariant

import "fmt"

// Assert panics with the message if the condition does not hold. Guard calls
// whose arguments cost something with Enabled.
func Assert(holds bool, format string, args ...any) {
	if Enabled && !holds {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}
