package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
)

// quantityCommand prints the values that Kubernetes parses from resource quantities.
func quantityCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "quantity",
		Short:        "Read one resource quantity a line, print its value in nanos or error",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE:         func(*cobra.Command, []string) error { return quantities(os.Stdin, os.Stdout) },
	}
}

// quantities reads lines with bufio.Reader: a Scanner would remove a carriage return at the end of a line.
func quantities(in io.Reader, out io.Writer) error {
	lines, answers := bufio.NewReader(in), bufio.NewWriter(out)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return answers.Flush()
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(answers, nanos(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
}

// nanos returns the exact value of a quantity. ParseQuantity takes minutes for exponents of many digits.
func nanos(text string) string {
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return "error"
	}
	value := quantity.AsDec()
	// Never negative: parsing rounds to nanos, so there are at most nine decimal places.
	zeros := big.NewInt(9 - int64(value.Scale()))
	factor := new(big.Int).Exp(big.NewInt(10), zeros, nil)
	return factor.Mul(factor, value.UnscaledBig()).String()
}
