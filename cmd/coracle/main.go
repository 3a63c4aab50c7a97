// Command coracle is a whole Kubernetes in one program: `coracle up` starts a cluster on
// this machine, `coracle kubectl` speaks with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" {
		os.Exit(runKubectl(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		os.Exit(runKubectl(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	if err := root.ExecuteContext(ctx); err != nil {
		var silent exitCode
		if errors.As(err, &silent) {
			os.Exit(int(silent))
		}
		fmt.Fprintln(os.Stderr, "coracle: "+err.Error())
		os.Exit(1)
	}
}

// exitCode ends the program with a status, when what there was to say has been said.
type exitCode int

// Error is never shown.
func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "coracle",
		Short:         "A whole Kubernetes in one small program",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newUp(), newDown(), newStatus(), newReset(), newVersion(), newKubectl(),
		newImage(), newFix(), newWhy(), newPolicy(), newServer(), newAgent(), newToken(), newCNI())
	return root
}
