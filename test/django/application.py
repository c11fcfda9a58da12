"""What a Django application does: `write` on the primary, `read` on a replica. Prints one line of results."""
import os
import sys

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import django  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import IntegrityError, OperationalError, connection, transaction  # noqa: E402
from notes.models import Note, Tag  # noqa: E402


def write():
    call_command("migrate", run_syncdb=True, verbosity=0)
    tag = Tag.objects.create(name="first")
    with transaction.atomic():
        for number in range(50):
            tag.notes.add(Note.objects.create(title=f"note {number}", body="x" * 500))
    try:
        with transaction.atomic():
            Note.objects.create(title="lost", body="rolled back")
            Note.objects.create(title="note 1", body="not unique")
    except IntegrityError:
        pass
    Note.objects.filter(title__endswith="7").update(body="changed")
    Note.objects.filter(title="note 49").delete()


def read():
    try:
        Note.objects.create(title="from a replica", body="")
        refused = "no"
    except OperationalError as error:
        refused = str(error)
    connection.close()
    titles = Note.objects.filter(tags__name="first").count()
    changed = Note.objects.filter(body="changed").count()
    lost = Note.objects.filter(title="lost").count()
    print(f"{titles} {changed} {lost} {refused}")


{"write": write, "read": read}[sys.argv[1]]()
