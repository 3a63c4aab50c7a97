package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// KubeconfigPath is where a context is merged if the user names no file: the first
// file of $KUBECONFIG, or the one in the home directory.
func KubeconfigPath() (string, error) {
	if list := filepath.SplitList(os.Getenv("KUBECONFIG")); len(list) > 0 && list[0] != "" {
		return list[0], nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("kubeconfig: no home directory (%w): name a file with --kubeconfig", err)
	}
	return filepath.Join(home, ".kube", "config"), nil
}

// adminConfig is a kubeconfig with one context, which may do everything.
func adminConfig(context, server string, ca, cert, key []byte) *clientcmdapi.Config {
	c := clientcmdapi.NewConfig()
	c.Clusters[context] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	c.AuthInfos[context] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	c.Contexts[context] = &clientcmdapi.Context{Cluster: context, AuthInfo: context}
	c.CurrentContext = context
	return c
}

// mergeKubeconfig puts the entries of add into the file at path, replaces those of the
// same names, and makes its context current.
func mergeKubeconfig(path string, add *clientcmdapi.Config) error {
	return editKubeconfig(path, func(c *clientcmdapi.Config) {
		for name, v := range add.Clusters {
			c.Clusters[name] = v
		}
		for name, v := range add.AuthInfos {
			c.AuthInfos[name] = v
		}
		for name, v := range add.Contexts {
			c.Contexts[name] = v
		}
		c.CurrentContext = add.CurrentContext
	})
}

// removeKubeconfig takes a context out of the file at path, with its cluster and user.
// An absent file is no error.
func removeKubeconfig(path, context string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return editKubeconfig(path, func(c *clientcmdapi.Config) {
		delete(c.Clusters, context)
		delete(c.AuthInfos, context)
		delete(c.Contexts, context)
		if c.CurrentContext == context {
			c.CurrentContext = ""
		}
	})
}

func editKubeconfig(path string, edit func(*clientcmdapi.Config)) error {
	c, err := clientcmd.LoadFromFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c = clientcmdapi.NewConfig()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("kubeconfig: %w", err)
		}
	case err != nil:
		return fmt.Errorf("kubeconfig %s cannot be read (%w): mend it, or name another with --kubeconfig", path, err)
	}
	edit(c)
	data, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return writeFile(path, data, 0o600)
}
