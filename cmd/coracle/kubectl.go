package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"coracle.dev/coracle/cluster"
)

func newKubectl() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Upstream's kubectl, pointed at this cluster (--data-dir first, to name another)",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := runKubectl(args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

// runKubectl runs upstream's kubectl. A leading --data-dir chooses the cluster; if the
// user names no kubeconfig, the admin's of that cluster is used where it can be read.
func runKubectl(args []string) int {
	dir := envOr("data-dir", cluster.DefaultDataDir)
	chosen := false
	if len(args) > 0 {
		if value, ok := strings.CutPrefix(args[0], "--data-dir="); ok {
			dir, args, chosen = value, args[1:], true
		} else if args[0] == "--data-dir" && len(args) > 1 {
			dir, args, chosen = args[1], args[2:], true
		}
	}
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	admin := filepath.Join(dir, "admin.kubeconfig")
	if _, err := os.Stat(admin); err == nil && (chosen || !namesConfig(args)) {
		flags.KubeConfig = &admin
	}
	os.Args = append([]string{"kubectl"}, args...)
	command := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
		PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
		Arguments:     os.Args,
		ConfigFlags:   flags,
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	command.SetArgs(args)
	command.SilenceErrors = true
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "error: "+strings.TrimPrefix(err.Error(), "error: "))
		return 1
	}
	return 0
}

// namesConfig tells whether the user has said which cluster to speak with.
func namesConfig(args []string) bool {
	return os.Getenv("KUBECONFIG") != "" || slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--kubeconfig" || name == "--context" || name == "--cluster" || name == "--server" || name == "-s"
	})
}
