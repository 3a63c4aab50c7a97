package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/linux/memory"
)

// progressFD is the descriptor over which a detached instance tells its parent how
// the start goes.
const progressFD = 3

func newUp() *cobra.Command {
	var cfg cluster.Config
	var detach, keep bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster on this machine",
		Long: `Start a cluster on this machine: API server, store, controllers, scheduler and a node
that runs containers. A second "up" finds the running one. Ctrl-C stops everything in order.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), &cfg); err != nil {
				return err
			}
			if running(cmd, cfg.DataDir) {
				return nil
			}
			if detach {
				return upDetached(cmd.Context(), cmd.OutOrStdout(), cfg.DataDir)
			}
			return upHere(cmd.Context(), cmd.OutOrStdout(), cfg, keep)
		},
	}
	addConfig(c, &cfg)
	c.Flags().BoolVarP(&detach, "detach", "d", false, "return when the cluster is ready and leave it running")
	c.Flags().BoolVar(&keep, "keep", false, "leave containers running when stopped")
	return c
}

// running says so if an instance runs on the data directory already.
func running(cmd *cobra.Command, dataDir string) bool {
	control, err := cluster.Connect(dataDir)
	if err != nil {
		return false
	}
	s, err := control.Status(cmd.Context())
	if err != nil {
		return false
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Already running: %s (process %d).\n", s.Server, s.PID)
	fmt.Fprintln(cmd.OutOrStdout(), next(s.Context))
	return true
}

// next says what can be done now. A node without a control plane has no context: its users are at the control plane.
func next(context string) string {
	if context == "" {
		return "Type: kubectl get nodes   (at the control plane)"
	}
	return fmt.Sprintf("Type: kubectl --context %s get nodes   (or coracle kubectl get nodes)", context)
}

func upHere(ctx context.Context, out io.Writer, cfg cluster.Config, keep bool) error {
	if os.Getenv("GOGC") == "" {
		defer memory.Pace().Stop()
	}
	show := progressTo(out)
	log, closeLog, err := openLog(cfg)
	if err != nil {
		return err
	}
	defer closeLog()
	routeLibraries(log)
	c, err := cluster.Start(ctx, cfg, cluster.Options{Log: log, Progress: show})
	if err != nil {
		show(cluster.Step{Err: err.Error()})
		return err
	}
	s := c.Status()
	if _, err := memory.ReturnProgramPages(); err != nil {
		log.Warn("the pages of the start are kept", "error", err)
	}
	show(cluster.Step{Name: "ready", Took: s.Ready, Detail: s.Server, Context: s.Context, Last: true})
	how := cluster.StopOptions{Keep: keep}
	select {
	case <-ctx.Done():
	case <-c.StopRequested():
		how = c.Asked()
	case <-c.Failed():
	}
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err = c.Stop(stop, how)
	if failed := c.Err(); failed != nil {
		return failed
	}
	return err
}

// progressTo shows steps to a person or, if this is a detached instance, to its parent.
func progressTo(out io.Writer) func(cluster.Step) {
	if os.Getenv("CORACLE_DETACHED") == "" {
		return func(s cluster.Step) { printStep(out, s) }
	}
	pipe := os.NewFile(progressFD, "progress")
	encoder := json.NewEncoder(pipe)
	return func(s cluster.Step) {
		_ = encoder.Encode(s) // a parent that is gone needs to know nothing
		if s.Last {
			pipe.Close()
		}
	}
}

func printStep(out io.Writer, s cluster.Step) {
	switch {
	case s.Err != "":
	case s.Last:
		what := "Cluster ready in %s at %s\n%s\n"
		if s.Context == "" {
			what = "Node ready in %s, of the cluster at %s\n%s\n"
		}
		fmt.Fprintf(out, what, round(s.Took), s.Detail, next(s.Context))
	default:
		fmt.Fprintf(out, "  %-12s %8s  %s\n", s.Name, round(s.Took), s.Detail)
	}
}

func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}

// upDetached starts this program again in a session of its own and follows its
// start.
func upDetached(ctx context.Context, out io.Writer, dataDir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	if err := os.MkdirAll(dataDir, 0o711); err != nil {
		return fmt.Errorf("data directory: %w: choose another with --data-dir", err)
	}
	errors_, err := os.OpenFile(filepath.Join(dataDir, "coracle.err"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer errors_.Close()
	child := exec.Command(self, withoutDetach(os.Args[1:])...)
	child.Env = append(os.Environ(), "CORACLE_DETACHED=1")
	child.ExtraFiles = []*os.File{write} // descriptor 3
	child.Stderr = errors_
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	write.Close()
	stop := context.AfterFunc(ctx, func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		var s cluster.Step
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			continue
		}
		if s.Err != "" {
			_ = child.Wait()
			return errors.New(s.Err)
		}
		printStep(out, s)
		if s.Last {
			return child.Process.Release()
		}
	}
	werr := child.Wait()
	said, _ := os.ReadFile(errors_.Name())
	return fmt.Errorf("the cluster ended while it started (%v): %s", werr, strings.TrimSpace(string(said)))
}

// withoutDetach drops -d and --detach in all their forms.
func withoutDetach(args []string) []string {
	var kept []string
	for _, a := range args {
		if a == "-d" || a == "--detach" || strings.HasPrefix(a, "--detach=") {
			continue
		}
		kept = append(kept, a)
	}
	return kept
}
