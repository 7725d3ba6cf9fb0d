package syntax

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// longestSuggestion bounds the words that are compared: nobody means a word
// this long, and the comparison takes time in the product of the lengths.
const longestSuggestion = 64

// Suggest returns the candidate nearest to word, or "" if none is near. Case
// does not count as a difference, but equal words are no suggestion. Ties go
// to the candidate that sorts first.
func Suggest(word string, candidates []string) string {
	if word == "" || len(word) > longestSuggestion {
		return ""
	}
	lower := strings.ToLower(word)
	limit := min(1+utf8.RuneCountInString(word)/3, 3)
	best, bestDistance := "", limit+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if c == word || c == "" || len(c) > longestSuggestion {
			continue
		}
		if d := Distance(lower, strings.ToLower(c)); d < bestDistance && d < utf8.RuneCountInString(c) {
			best, bestDistance = c, d
		}
	}
	return best
}

// Distance is the Levenshtein distance of two words: how many characters have
// to be put in, taken out or replaced to get from one to the other; two
// neighbours that changed places count once.
func Distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	var beforeLast []int
	last := make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row := make([]int, len(y)+1)
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], beforeLast[j-2]+1)
			}
		}
		beforeLast, last = last, row
	}
	return last[len(y)]
}
