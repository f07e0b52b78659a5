package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// keepThread ties the calling goroutine to its thread for the rest of the program.
//
// Linux sends a child its Pdeathsig when the *thread* that started it ends, not the process (prctl(2), PR_SET_PDEATHSIG).
// Without the tie, Go could end that thread while all is well and so kill the children. Never undone: the goroutine is
// the main one, which lives as long as the program.
func keepThread() { runtime.LockOSThread() }

// untilStdinCloses returns when nobody holds the other end of standard input any more; what is written to it is ignored.
func untilStdinCloses() { _, _ = io.Copy(io.Discard, os.Stdin) }

// tetherCommand ties a program that knows nothing of its caller to the caller's life.
func tetherCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tether -- CMD ARGS...",
		Short: "Run CMD, kill it when standard input closes, end with its exit code",
		Long: "Run CMD with this program's stdout and stderr and an empty standard input. SIGTERM and SIGINT are passed on to it; it is\n" +
			"killed when tether's standard input closes or tether is killed. Ends with the exit code of CMD, or with 128 + N if\n" +
			"signal N ended it.",
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(_ *cobra.Command, args []string) error {
			code, err := tether(args)
			if err != nil {
				return err
			}
			os.Exit(code) // cli.Run knows only 0 and 1
			return nil
		},
	}
}

func tether(args []string) (int, error) {
	keepThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM) // before the start, so that none is lost

	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A process group of its own: Ctrl-C in a terminal then reaches the child once, through us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		untilStdinCloses()
		_ = cmd.Process.Kill()
	}()
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()

	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		return 0, fmt.Errorf("%s: %w", args[0], err)
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}
