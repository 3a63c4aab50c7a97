package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/internal/version"
)

func newStatus() *cobra.Command {
	var dir, output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the parts of the running cluster, their health and what they use",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			control, err := cluster.Connect(dir)
			if err != nil {
				return fmt.Errorf("%w: start it with `coracle up`", err)
			}
			s, err := control.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "Server\t%s (context %s)\n", s.Server, s.Context)
			fmt.Fprintf(w, "Process\t%d, up %s, ready after %s\n", s.PID, time.Since(s.Started).Round(time.Second), round(s.Ready))
			fmt.Fprintf(w, "Data\t%s\n", s.DataDir)
			fmt.Fprintf(w, "Nodes\t%s\n", s.Nodes)
			fmt.Fprintf(w, "Memory\t%.1f MB, containers' parent %.1f MB\n", float64(s.Resident)/1e6, float64(s.Shim)/1e6)
			fmt.Fprintf(w, "CPU used\t%s\n", s.CPU.Round(time.Millisecond))
			fmt.Fprintf(w, "Pods\t%d, %d running\n", s.Pods, s.Running)
			fmt.Fprintf(w, "Objects\t%d at revision %d\n\n", s.Objects, s.Revision)
			fmt.Fprintln(w, "PART\tSTARTED IN\tHEALTH")
			bad := false
			for _, p := range s.Parts {
				health := "ok"
				if p.Problem != "" {
					health, bad = p.Problem, true
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, round(p.Took), health)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if bad {
				return exitCode(1)
			}
			return nil
		},
	}
	addDataDir(c, &dir)
	c.Flags().StringVarP(&output, "output", "o", "", `"json" for a form that programs read`)
	return c
}

func newVersion() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			info := version.Info()
			fmt.Fprintf(cmd.OutOrStdout(), "coracle %s (Kubernetes %s, %s, %s)\n", version.Coracle, version.Kubernetes, info.GoVersion, info.Platform)
		},
	}
	addDataDir(c, &dir)
	return c
}
