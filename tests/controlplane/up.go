package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	nodeinit "sigs.k8s.io/kwok/kustomize/stage/node/fast"
	nodelease "sigs.k8s.io/kwok/kustomize/stage/node/heartbeat-with-lease"
	podfast "sigs.k8s.io/kwok/kustomize/stage/pod/fast"
)

// upCommand starts a control plane on free loopback ports and prints one line of JSON when it is ready. It stops all parts
// on a signal, or when one of them ends.
func upCommand() *cobra.Command {
	var dir, stages string
	var wait time.Duration
	var stopWithStdin bool
	c := &cobra.Command{
		Use:           "up --dir DIR",
		Short:         "Run etcd, kube-apiserver, kube-scheduler, kube-controller-manager and kwok until interrupted",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if stopWithStdin {
				go func() {
					untilStdinCloses()
					stop()
				}()
			}
			return up(ctx, dir, stages, wait)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "empty or absent directory for data, certificates and logs (required)")
	c.Flags().StringVar(&stages, "stages", "", "kwok stages file (default: nodes and pods become ready immediately)")
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "timeout of the start")
	c.Flags().BoolVar(&stopWithStdin, "stop-with-stdin", false, "stop when standard input closes, so that nothing outlives a caller that holds the other end")
	_ = c.MarkFlagRequired("dir")
	return c
}

func up(ctx context.Context, dir, stages string, wait time.Duration) error {
	keepThread()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	pki, err := newPKI(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	ports, err := reservePorts(5)
	if err != nil {
		return err
	}
	etcdURL, peerURL := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	server := "https://127.0.0.1:" + ports[2]
	admin, err := pki.kubeconfig("admin", server)
	if err != nil {
		return err
	}
	sched, err := pki.kubeconfig("scheduler", server)
	if err != nil {
		return err
	}
	if stages == "" {
		stages = filepath.Join(dir, "stages.yaml")
		docs := []string{nodeinit.DefaultNodeInit, nodelease.DefaultNodeHeartbeatWithLease, podfast.DefaultPodReady, podfast.DefaultPodComplete, podfast.DefaultPodDelete}
		if err := os.WriteFile(stages, []byte(strings.Join(docs, "\n---\n")), 0o600); err != nil {
			return err
		}
	}

	group := &processes{dir: dir, died: make(chan error, 8)}
	defer group.stop()
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, done := context.WithTimeout(ctx, wait)
	defer done()

	group.start("etcd", "--data-dir", filepath.Join(dir, "etcd"), "--client-url", etcdURL, "--peer-url", peerURL)
	apiserver := []string{
		"--etcd-servers=" + etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + ports[2],
		"--tls-cert-file=" + pki.path("apiserver.crt"), "--tls-private-key-file=" + pki.path("apiserver.key"),
		"--client-ca-file=" + pki.path("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki.path("sa.key"), "--service-account-signing-key-file=" + pki.path("sa.key"),
		"--service-cluster-ip-range=10.0.0.0/16", "--authorization-mode=RBAC", "--allow-privileged=true",
		"--audit-policy-file=" + filepath.Join(dir, "audit-policy.yaml"), "--audit-log-path=" + filepath.Join(dir, "audit.log"),
	}
	group.start("kube-apiserver", apiserver...)
	client, err := pki.client("admin")
	if err != nil {
		return err
	}
	if err := group.waitFor(ready, client, server+"/readyz"); err != nil {
		return err
	}
	group.start("kube-controller-manager",
		"--kubeconfig="+admin, "--bind-address=127.0.0.1", "--secure-port="+ports[3], "--leader-elect=false",
		"--service-account-private-key-file="+pki.path("sa.key"), "--root-ca-file="+pki.path("ca.crt"),
		"--use-service-account-credentials=false",
		// The default limit is 20 pods a second. Tests of bursts need more.
		"--kube-api-qps=1000", "--kube-api-burst=1000")
	group.start("kube-scheduler",
		"--kubeconfig="+sched, "--authentication-kubeconfig="+sched, "--authorization-kubeconfig="+sched,
		"--bind-address=127.0.0.1", "--secure-port="+ports[4], "--leader-elect=false",
		"--kube-api-qps=1000", "--kube-api-burst=1000")
	group.start("kwok", "--kubeconfig="+admin, "--manage-all-nodes=true", "--node-lease-duration-seconds=40", "--config="+stages)
	for _, url := range []string{
		"https://127.0.0.1:" + ports[3] + "/healthz",
		"https://127.0.0.1:" + ports[4] + "/healthz",
		server + "/api/v1/namespaces/default/serviceaccounts/default",
	} {
		if err := group.waitFor(ready, client, url); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{
		"server": server, "kubeconfig": admin, "auditLog": filepath.Join(dir, "audit.log"), "readySeconds": time.Since(start).Seconds(),
	}); err != nil {
		return err
	}
	restart := make(chan os.Signal, 1)
	signal.Notify(restart, syscall.SIGUSR1)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-group.died:
			group.died <- err // stop expects one message for each process
			return err
		case <-restart:
			group.end("kube-apiserver")
			group.start("kube-apiserver", apiserver...)
		}
	}
}

// processes are the roles that run as children. The kernel kills them if this process ends first.
type processes struct {
	dir  string
	cmds []*child
	died chan error
}

type child struct {
	*exec.Cmd
	name string
	// closed before the role is stopped on purpose
	ending chan struct{}
	ended  chan struct{}
}

// start must run on a goroutine that has called keepThread.
func (p *processes) start(name string, args ...string) {
	log, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		p.died <- err
		return
	}
	self, err := os.Executable()
	if err != nil {
		p.died <- err
		return
	}
	cmd := exec.Command(self, append([]string{name}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.died <- fmt.Errorf("%s: %w", name, err)
		return
	}
	started := &child{Cmd: cmd, name: name, ending: make(chan struct{}), ended: make(chan struct{})}
	p.cmds = append(p.cmds, started)
	go func() {
		err := cmd.Wait()
		select {
		case <-started.ending:
		default:
			p.died <- fmt.Errorf("%s stopped (%v), see %s", name, err, log.Name())
		}
		log.Close()
		close(started.ended)
	}()
}

// end sends SIGTERM to a role, and SIGKILL if that takes too long.
func (p *processes) end(name string) {
	for i, c := range p.cmds {
		if c.name != name {
			continue
		}
		close(c.ending)
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.ended:
		case <-time.After(3 * time.Second): // the API server takes a minute while watches are open
			_ = c.Process.Kill()
			<-c.ended
		}
		p.cmds = append(p.cmds[:i], p.cmds[i+1:]...)
		return
	}
}

// stop kills all roles without a grace period, because the data is temporary.
func (p *processes) stop() {
	for _, c := range p.cmds {
		_ = c.Process.Kill()
	}
	for range p.cmds {
		<-p.died
	}
}

func (p *processes) waitFor(ctx context.Context, client *http.Client, url string) error {
	last := errors.New("not tried")
	for {
		res, err := client.Get(url)
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s not ready: %w (logs in %s)", url, last, p.dir)
		case err := <-p.died:
			p.died <- err // stop expects one message for each process
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// portLocks keeps the files of reserved ports open, and so locked, until the process ends.
var portLocks []*os.File

// reservePorts returns n ports that no other control plane of this user uses. They are below the ports that the kernel chooses
// (net.ipv4.ip_local_port_range, by default from 32768). So no connection takes a port before its component listens.
func reservePorts(n int) ([]string, error) {
	const first, count = 20000, 10000
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("spillway-ports-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var ports []string
	start := rand.IntN(count)
	for i := 0; i < count && len(ports) < n; i++ {
		port := strconv.Itoa(first + (start+i)%count)
		lock, err := os.OpenFile(filepath.Join(dir, port), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil || !isFree(port) {
			lock.Close()
			continue
		}
		portLocks = append(portLocks, lock)
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("no %d free ports from %d to %d", n, first, first+count-1)
	}
	return ports, nil
}

func isFree(port string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return false
	}
	return l.Close() == nil
}
