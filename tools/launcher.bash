# What the launchers share; each sources this file. Its header, from the second line to "# Needs", is what --help shows.

usage() { sed -n '2,/^# Needs/s/^# \{0,1\}//p' "$0"; }
fail() { echo "error: $*" >&2; exit 2; }

# Prints a command as it could be typed, and runs it.
run() {
  printf '+%s\n' "$(printf ' %q' "$@")"
  [[ -n $dry_run ]] || "$@"
}

# Reads a command line into `action`, `dry_run`, `arguments` (those of lm.main, behind --) and a variable for each flag that the
# array `settings` lists as NAME=DEFAULT. What is none of these goes to the launcher's function `other`, false if it is unknown.
read_flags() {
  [[ $# -gt 0 && $1 != --help && $1 != -h ]] || { usage; exit 0; }
  action=$1 dry_run='' arguments=()
  shift
  local each flag known=" ${settings[*]%%=*} "
  for each in "${settings[@]}"; do printf -v "${each%%=*}" %s "${each#*=}"; done
  while (( $# )); do
    flag=${1#--}
    flag=${flag%%=*}
    case $1 in
      --dry_run) dry_run=yes ;;
      --) arguments=("${@:2}"); return ;;
      --*=*) if [[ $known == *" $flag "* ]]; then printf -v "$flag" %s "${1#*=}"; else take "$1"; fi ;;
      *) take "$1" ;;
    esac
    shift
  done
}

take() { other "$1" || fail "$1: unknown flag; see $0 --help"; }

# Puts the command line of lm.main under the Python given into `command`; its flags must be there.
make_command() {
  (( ${#arguments[@]} )) || fail "$action: needs the flags of lm.main behind --"
  printf -v command ' %q' "$1" -m lm.main "${arguments[@]}"
}
