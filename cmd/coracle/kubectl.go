package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/klog/v2"
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
	verbosity := klogFlags()
	_ = verbosity.Set("v", kubectl.GetLogVerbosity(os.Args)) // a bad value is reported when the flags are parsed
	defer klog.Flush()
	command := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
		PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
		Arguments:     os.Args,
		ConfigFlags:   flags,
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	command.SetArgs(args)
	command.SilenceErrors = true
	command.SetGlobalNormalizationFunc(cliflag.WordSepNormalizeFunc)
	command.PersistentFlags().AddGoFlagSet(verbosity)
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "error: "+strings.TrimPrefix(err.Error(), "error: "))
		return 1
	}
	return 0
}

// klogFlags are the flags by which kubectl's users say how much it logs.
func klogFlags() *flag.FlagSet {
	all, ours := flag.NewFlagSet("", flag.ContinueOnError), flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(all)
	for name, usage := range map[string]string{
		"v":       "number for the log level verbosity",
		"vmodule": "comma-separated list of pattern=N settings for file-filtered logging (only works for the default text log format)",
	} {
		ours.Var(all.Lookup(name).Value, name, usage)
	}
	return ours
}

// namesConfig tells whether the user has said which cluster to speak with.
func namesConfig(args []string) bool {
	return os.Getenv("KUBECONFIG") != "" || slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--kubeconfig" || name == "--context" || name == "--cluster" || name == "--server" || name == "-s"
	})
}
