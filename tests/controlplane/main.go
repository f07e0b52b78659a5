// Command controlplane is a Kubernetes control plane in one multi-call binary, for tests and demos.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	// Feature gates, metrics and signal handlers are global to a process: each role runs in its own.
	roles := map[string]func() *cobra.Command{
		"etcd":                    etcdCommand,
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": kcm.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubectl":                 func() *cobra.Command { return kubectl.NewDefaultKubectlCommand() },
		"kwok":                    kwokCommand,
		"helm":                    helmCommand,
		"up":                      upCommand,
		"tether":                  tetherCommand,
		"quantity":                quantityCommand,
	}
	name := filepath.Base(os.Args[0])
	if _, ok := roles[name]; !ok && len(os.Args) > 1 {
		name, os.Args = os.Args[1], os.Args[1:]
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "usage: controlplane {etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubectl|helm|kwok|up|tether|quantity} [flags]")
		os.Exit(2)
	}
	os.Exit(cli.Run(role()))
}
