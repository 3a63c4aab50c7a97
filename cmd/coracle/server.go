package main

import (
	"errors"

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

// newAgent is a node without a control plane. Joining over the network is the next
// step of the client package (client over HTTPS); until then the command says so.
func newAgent() *cobra.Command {
	var dir, server, token string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Join this machine to a control plane elsewhere as a node",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("joining a control plane over the network is not part of this release: run `coracle up` for a node beside its control plane")
		},
	}
	addDataDir(c, &dir)
	c.Flags().StringVar(&server, "server", "", "URL of the control plane")
	c.Flags().StringVar(&token, "token", "", "token that the control plane gave")
	return c
}
