package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"coracle.dev/coracle/cluster"
)

// newToken makes, lists and deletes the tokens with which machines join.
func newToken() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make, list and delete the tokens with which machines join the cluster"}
	c.AddCommand(newTokenCreate(), newTokenList(), newTokenDelete())
	return c
}

func newTokenCreate() *cobra.Command {
	var dir, description string
	var ttl time.Duration
	var command bool
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and print it or the command that joins a machine with it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < 0 {
				return errors.New("ttl: give 0 for a token that does not expire, or a time from now")
			}
			admin, err := openAdmin(dir)
			if err != nil {
				return err
			}
			id, secret := randomText(bootstrapapi.BootstrapTokenIDBytes), randomText(bootstrapapi.BootstrapTokenSecretBytes)
			data := map[string]string{
				bootstrapapi.BootstrapTokenIDKey: id, bootstrapapi.BootstrapTokenSecretKey: secret,
				bootstrapapi.BootstrapTokenUsageAuthentication: "true", bootstrapapi.BootstrapTokenUsageSigningKey: "true",
				bootstrapapi.BootstrapTokenExtraGroupsKey: cluster.TokenGroup,
			}
			if description != "" {
				data[bootstrapapi.BootstrapTokenDescriptionKey] = description
			}
			if ttl > 0 {
				data[bootstrapapi.BootstrapTokenExpirationKey] = time.Now().Add(ttl).UTC().Format(time.RFC3339)
			}
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: bootstrapapi.BootstrapTokenSecretPrefix + id},
				Type: bootstrapapi.SecretTypeBootstrapToken, StringData: data}
			if _, err := admin.CoreV1().Secrets(s.Namespace).Create(cmd.Context(), s, metav1.CreateOptions{}); err != nil {
				return err
			}
			token := id + "." + secret
			if !command {
				fmt.Fprintln(cmd.OutOrStdout(), token)
				return nil
			}
			text, err := joinCommand(cmd.Context(), admin, token)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), text)
			return nil
		},
	}
	addDataDir(c, &dir)
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "time until the token expires, 0 for never")
	c.Flags().StringVar(&description, "description", "", "what the token is for")
	c.Flags().BoolVar(&command, "print-join-command", false, "print the whole command that joins a machine")
	return c
}

// joinCommand is what is to be typed on the machine that joins. The address is the one that the cluster tells new nodes.
func joinCommand(ctx context.Context, admin kubernetes.Interface, token string) (string, error) {
	info, err := admin.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, bootstrapapi.ConfigMapClusterInfo, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	config, err := clientcmd.Load([]byte(info.Data[bootstrapapi.KubeConfigKey]))
	if err != nil {
		return "", fmt.Errorf("cluster-info: %w", err)
	}
	for _, c := range config.Clusters {
		hash, err := cluster.CAHash(c.CertificateAuthorityData)
		if err != nil {
			return "", fmt.Errorf("cluster-info: %w", err)
		}
		return fmt.Sprintf("coracle agent --server %s --token %s --ca-hash %s", c.Server, token, hash), nil
	}
	return "", errors.New("cluster-info names no cluster")
}

func newTokenList() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, err := openAdmin(dir)
			if err != nil {
				return err
			}
			list, err := admin.CoreV1().Secrets(metav1.NamespaceSystem).List(cmd.Context(),
				metav1.ListOptions{FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken)})
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tEXPIRES\tDESCRIPTION")
			for i := range list.Items {
				d := list.Items[i].Data
				expires := string(d[bootstrapapi.BootstrapTokenExpirationKey])
				if expires == "" {
					expires = "never"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", d[bootstrapapi.BootstrapTokenIDKey], expires, d[bootstrapapi.BootstrapTokenDescriptionKey])
			}
			return w.Flush()
		},
	}
	addDataDir(c, &dir)
	return c
}

func newTokenDelete() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "delete ID|TOKEN",
		Short: "Delete a token",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, err := openAdmin(dir)
			if err != nil {
				return err
			}
			id, _, _ := strings.Cut(args[0], ".")
			return admin.CoreV1().Secrets(metav1.NamespaceSystem).Delete(cmd.Context(), bootstrapapi.BootstrapTokenSecretPrefix+id, metav1.DeleteOptions{})
		},
	}
	addDataDir(c, &dir)
	return c
}

// openAdmin is the API with the rights of the one who may read a data directory.
func openAdmin(dir string) (kubernetes.Interface, error) {
	path := filepath.Join(dir, "admin.kubeconfig")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%s holds no control plane that has been started (%w): give its --data-dir", dir, err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	config.Timeout = 30 * time.Second
	return kubernetes.NewForConfig(config)
}

// randomText is n small letters and digits.
func randomText(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	var b [1]byte
	for len(out) < n {
		_, _ = rand.Read(b[:])
		if int(b[0]) < 256/len(letters)*len(letters) { // no letter is likelier than another
			out = append(out, letters[int(b[0])%len(letters)])
		}
	}
	return string(out)
}
