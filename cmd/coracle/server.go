package main

import (
	"github.com/spf13/cobra"

	"coracle.dev/coracle/cluster"
)

// newServer is `up` without a node, for machines that only hold the control plane.
func newServer() *cobra.Command {
	var cfg cluster.Config
	c := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane alone, without a node on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(cmd.Flags(), &cfg); err != nil {
				return err
			}
			if running(cmd, cfg.DataDir) {
				return nil
			}
			return upHere(cmd.Context(), cmd.OutOrStdout(), cfg, false)
		},
	}
	addConfig(c, &cfg)
	nodes := c.Flags().Lookup("nodes")
	nodes.DefValue, nodes.Hidden = "none", true
	_ = nodes.Value.Set("none")
	return c
}
