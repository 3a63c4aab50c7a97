package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"coracle.dev/coracle/cluster"
)

func newDown() *cobra.Command {
	var dir string
	var keep bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster; its state stays for the next up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ended, err := stopRunning(cmd, dir, cluster.StopOptions{Keep: keep})
			if err != nil {
				return err
			}
			if keep {
				if !ended {
					fmt.Fprintln(cmd.OutOrStdout(), "Not running.")
				}
				return nil
			}
			// After a crash containers run on without their coracle: end them too.
			left, err := cluster.StopContainers(cmd.Context(), dir)
			if err != nil {
				return err
			}
			switch {
			case ended:
				fmt.Fprintln(cmd.OutOrStdout(), "Stopped. The state is kept in "+dir+".")
			case left > 0:
				fmt.Fprintf(cmd.OutOrStdout(), "Was not running; %d containers that it had left were stopped.\n", left)
			default:
				fmt.Fprintln(cmd.OutOrStdout(), "Not running.")
			}
			return nil
		},
	}
	addDataDir(c, &dir)
	c.Flags().BoolVar(&keep, "keep", false, "leave containers running; the next up takes them over")
	return c
}

// stopRunning ends the instance on a data directory, if there is one, and waits until
// its process is gone.
func stopRunning(cmd *cobra.Command, dir string, how cluster.StopOptions) (bool, error) {
	control, err := cluster.Connect(dir)
	if errors.Is(err, cluster.ErrNotRunning) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s, err := control.Status(cmd.Context())
	if err != nil {
		return false, err
	}
	pidfd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		return false, fmt.Errorf("process %d: %w", s.PID, err)
	}
	defer unix.Close(pidfd)
	if err := control.Stop(cmd.Context(), how); err != nil {
		return false, err
	}
	const patience = 150 * time.Second
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		if n == 0 {
			return false, fmt.Errorf("process %d did not end within %s: see %s/coracle.log", s.PID, patience, dir)
		}
		return true, nil
	}
}

func newReset() *cobra.Command {
	var dir, kubeconfig string
	var yes bool
	c := &cobra.Command{
		Use:   "reset",
		Short: "Remove the cluster and everything that it made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				fmt.Fprintf(cmd.OutOrStdout(), "Remove the cluster in %s with all its containers, volumes and state? [y/N] ", dir)
				answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
				if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
					return errors.New("nothing was removed; --yes does it without asking")
				}
			}
			if _, err := stopRunning(cmd, dir, cluster.StopOptions{Now: true}); err != nil {
				return err
			}
			if err := cluster.Reset(cmd.Context(), dir, kubeconfig); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Removed "+dir+" and all that it had made.")
			return nil
		},
	}
	addDataDir(c, &dir)
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", `file to take the cluster's context out of (default the one that "up" merged it into)`)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
