package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"coracle.dev/coracle/network/cni"
	_ "coracle.dev/coracle/network/cni/early" // does a plugin's work before anything else is initialised
)

func newCNI() *cobra.Command {
	c := &cobra.Command{
		Use:   "cni",
		Short: "Let other container runtimes use the pods' network",
		Long: `The program is a plugin of the Container Network Interface (1.1.0) when it is started as runtimes start one,
with CNI_COMMAND in the environment and the configuration in standard input.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv("CNI_COMMAND") == "" {
				return cmd.Help()
			}
			if status := cni.Main(); status != 0 {
				return exitCode(status)
			}
			return nil
		},
	}
	c.AddCommand(newCNIInstall())
	return c
}

func newCNIInstall() *cobra.Command {
	in := cni.Installation{}
	var dir string
	c := &cobra.Command{
		Use:   "install",
		Short: "Put the plugin and its configuration where runtimes look for them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if dir != "" {
				in.BinDir, in.ConfDir = filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
			}
			if in.Program, err = os.Executable(); err != nil {
				return err
			}
			for _, path := range []*string{&in.DataDir, &in.BinDir, &in.ConfDir} {
				if *path, err = filepath.Abs(*path); err != nil {
					return err
				}
			}
			program, conf, err := cni.Install(in)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", program, conf)
			}
			return err
		},
	}
	addDataDir(c, &in.DataDir)
	c.Flags().StringVar(&dir, "dir", "", "directory for both, as bin and net.d")
	c.Flags().StringVar(&in.BinDir, "bin-dir", "/opt/cni/bin", "directory for the plugin")
	c.Flags().StringVar(&in.ConfDir, "conf-dir", "/etc/cni/net.d", "directory for the configuration")
	c.Flags().StringVar(&in.Network, "name", "coracle", "name of the network")
	return c
}
