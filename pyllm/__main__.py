"""python -m pyllm is the command pyllm."""
import sys

from pyllm.cli import main

sys.exit(main())
