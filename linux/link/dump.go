package link

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often a list is asked for that changed while the kernel wrote it.
const dumpTries = 20

// dump lists something again until nothing changed meanwhile (NLM_F_DUMP_INTR), which on a
// machine where pods come and go is not at the first time.
func dump[T any](list func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		out, err := list()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return out, err
		}
	}
}
