package main

// The scripts ask "kiln complete" and hand its answer to the shell. None needs
// more than the shell itself.

// Bash breaks words at "=" and ":", which are put together again here; what it
// is given must begin after the last of them.
const bashCompletion = `# Completion of kiln for bash 4.2 or newer.
_kiln() {
	local -a words=()
	local word glue='' i
	for ((i = 1; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ ${#words[@]} -gt 0 && (-n $glue || $word =~ ^[=:]+$) ]]; then
			words[-1]+=$word
		else
			words+=("$word")
		fi
		glue=''
		[[ $word =~ ^[=:]+$ ]] && glue=1
	done
	local cur=${COMP_WORDS[COMP_CWORD]} whole=${words[-1]}
	[[ $cur =~ ^[=:]+$ ]] && cur=''
	local before=${whole%"$cur"}
	COMPREPLY=()
	while IFS=$'\t' read -r word _; do
		case $word in
		:files | :dirs)
			compopt -o filenames 2>/dev/null
			local action=-f path
			[[ $word == :dirs ]] && action=-d
			while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen "$action" -- "$cur")
			;;
		*)
			COMPREPLY+=("${word#"$before"}")
			[[ $word == *[=,/:] ]] && compopt -o nospace 2>/dev/null
			;;
		esac
	done < <("${COMP_WORDS[0]}" complete -- "${words[@]}" 2>/dev/null)
	return 0
}
complete -F _kiln kiln
`

const zshCompletion = `#compdef kiln
# Completion of kiln for zsh.
_kiln() {
	local -a whole open
	local line word means paths=''
	for line in "${(@f)$("${(Q)words[1]}" complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
		word=${line%%$'\t'*}
		means=${line#*$'\t'}
		case $word in
		'') ;;
		:files) paths=files ;;
		:dirs) paths=dirs ;;
		*[=,/:]) open+=("${word//:/\\:}:$means") ;;
		*) whole+=("${word//:/\\:}:$means") ;;
		esac
	done
	(( $#whole )) && _describe kiln whole
	(( $#open )) && _describe kiln open -S ''
	if [[ -n $paths ]]; then
		compset -P '--*='
		if [[ $paths == dirs ]]; then _files -/; else _files; fi
	fi
}
if [[ $funcstack[1] == _kiln ]]; then
	_kiln "$@"
else
	(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
	compdef _kiln kiln
fi
`

const fishCompletion = `# Completion of kiln for fish.
function __kiln_complete
	set -l words (commandline -opc)
	set -l cur (commandline -ct)
	set -l before (string match -r -- '^--[^=]*=' "$cur")
	set -l path (string replace -r -- '^--[^=]*=' '' "$cur")
	for line in ($words[1] complete -- $words[2..-1] "$cur" 2>/dev/null)
		switch $line
			case ':files*'
				for found in (__fish_complete_path "$path")
					echo "$before$found"
				end
			case ':dirs*'
				for found in (__fish_complete_directories "$path")
					echo "$before$found"
				end
			case '*'
				echo $line
		end
	end
end
complete -c kiln -f -a '(__kiln_complete)'
`
